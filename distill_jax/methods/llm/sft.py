"""Cross-entropy on the data alone: how teachers are trained, and what distillation has to beat.

  loss = - sum_t log q(y_t | y_<t)

No teacher runs in the step; one that the config names is kept for the evals. On text that a teacher
wrote this is sequence-level distillation.

Paper: Kim, Rush, Sequence-Level Knowledge Distillation (arXiv:1606.07947), eq. 1 and section 3.2.
"""

import jax.numpy as jnp

from distill_jax import optim
from distill_jax.method import Method
from distill_jax.models import student as student_lib


def make(config) -> Method:
  student = student_lib.model(config, "student")
  tx = optim.make(config.optim, config.steps)

  def step(state, frozen, batch, key):
    def loss(params, batch, key):
      total, _ = student_lib.cross_entropy_sum(config, student, params, batch)
      return (total, jnp.sum(batch["mask"], dtype=jnp.float32)), {}

    return student_lib.update(config, tx, loss, state, batch, key)

  return Method(student_lib.init(config, tx, teacher=False), step)
