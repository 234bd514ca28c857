"""Sequence-level distillation: the teacher continues the prompt, the student learns what it wrote.

  y ~ teacher(. | prompt)
  loss = - sum_t log q(y_t | prompt, y_<t)

The teacher writes inside the compiled step. The paper takes the teacher's likeliest sequence by
beam search; here it is sampled, or greedy at temperature 0. Text written once and kept is `llm.sft`
on the file that `python -m distill_jax.generate` makes.

Paper: Kim, Rush, Sequence-Level Knowledge Distillation (arXiv:1606.07947), eq. 5 and section 3.2.
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.method import Method
from distill_jax.models import student as student_lib


def make(config) -> Method:
  student, teacher = student_lib.model(config, "student"), student_lib.model(config, "teacher")
  tx = optim.make(config.optim, config.steps)

  def step(state, frozen, batch, key):
    write_key, loss_key = jax.random.split(key)
    batch = student_lib.write(config, teacher, frozen["teacher"], batch, write_key)

    def loss(params, batch, key):
      total, _ = student_lib.cross_entropy_sum(config, student, params, batch)
      return (total, jnp.sum(batch["mask"], dtype=jnp.float32)), {}

    return student_lib.update(config, tx, loss, state, batch, loss_key)

  return Method(student_lib.init(config, tx), step)
