"""TAID: the target moves from the student's own distribution to the teacher's.

  p_t = softmax((1 - t) z_student + t z_teacher), without gradient
  loss = KL(p_t || q)

t starts at `start` and rises with the steps, faster while the loss falls; its state is part of the
training state.

Paper: Shing et al., TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge
  Transfer in Language Models (arXiv:2501.16937), eq. 2 and algorithm 1.
"""

import jax.numpy as jnp

from distill_jax import optim
from distill_jax.losses import divergences
from distill_jax.losses.taid import taid_init, taid_target, taid_update
from distill_jax.method import Method
from distill_jax.models import student as student_lib


def make(config) -> Method:
  student, teacher = student_lib.model(config, "student"), student_lib.model(config, "teacher")
  tx = optim.make(config.optim, config.steps)
  init_student = student_lib.init(config, tx)
  start, rate, decay = config.method.start, config.method.rate, config.method.decay

  def init(key, pretrained):
    state, frozen = init_student(key, pretrained)
    return dict(state, taid=taid_init(start=start)), frozen

  def step(state, frozen, batch, key):
    t = state["taid"].t

    def of_position(student_logits, teacher_logits):
      target = taid_target(student_logits, teacher_logits, t)
      return divergences.forward_kl(student_logits, target)

    def loss(params, batch, key):
      total, _ = student_lib.divergence_sum(
        config, of_position, (student, params), (teacher, frozen["teacher"]), batch
      )
      return (total, jnp.sum(batch["mask"], dtype=jnp.float32)), {}

    progress = state["step"] / config.steps
    state, metrics = student_lib.update(config, tx, loss, state, batch, key)
    total, count = metrics["loss"]
    taid = taid_update(
      state["taid"], total / jnp.maximum(count, 1), progress, start=start, rate=rate, decay=decay
    )
    return dict(state, taid=taid), dict(metrics, taid_t=(t, jnp.float32(1)))

  return Method(init, step)
