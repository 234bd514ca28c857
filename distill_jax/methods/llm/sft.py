"""Cross-entropy on the data alone: how teachers are trained, and what distillation has to beat.

  loss = - sum_t log q(y_t | y_<t)

No teacher runs in the step; one that the config names is kept for the evals. On text that a teacher
wrote this is sequence-level distillation.

Paper: Kim, Rush, Sequence-Level Knowledge Distillation (arXiv:1606.07947), eq. 1 and section 3.2.
"""

import jax.numpy as jnp

from distill_jax import optim
from distill_jax.losses.linear_divergence import linear_cross_entropy_sum
from distill_jax.method import Method
from distill_jax.models import student as student_lib


def make(config) -> Method:
  student = student_lib.model(config, "student")
  tx = optim.make(config.optim, config.steps)

  def step(state, frozen, batch, key):
    def loss(params, batch, key):
      tokens, mask = batch["tokens"], batch["mask"]
      total, _ = linear_cross_entropy_sum(
        student.hidden(params, tokens[:, :-1]),
        student.head(params),
        tokens[:, 1:],
        weights=mask,
        chunk=config.divergence.chunk,
        student=student_lib.head(student),
      )
      return (total, jnp.sum(mask, dtype=jnp.float32)), {}

    return student_lib.update(config, tx, loss, state, batch, key)

  return Method(student_lib.init(config, tx, teacher=False), step)
