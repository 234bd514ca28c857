"""Consistency distillation by Euler steps, whose optimum on a Gaussian is known on every grid."""

import numpy as np

from distill_jax.diffusion.schedules import karras_sigmas


def test_the_discrete_flow_of_the_teacher_has_no_gradient(exact):
  levels = np.asarray(karras_sigmas(18, 0.01, 20.0))[::-1]
  # at the lowest level the student is what it is, and the teacher's steps lead there
  gains = np.cumprod(
    [1, *((exact.std**2 + levels[1:] * levels[:-1]) / (exact.std**2 + levels[1:] ** 2))]
  )
  euler = ("method.solver=euler", "method.target_decay=0.0")
  run = exact.play("consistency", euler, student=exact.network(exact.looked_up(levels, gains)))
  other = exact.play("consistency", euler, student=exact.network(exact.denoiser))
  assert run.loss < 1e-8 * other.loss
  assert run.grad_norm < 1e-3 * other.grad_norm


def test_heun_is_nearer_to_the_exact_flow(exact):
  student = exact.network(exact.consistency)
  losses = [
    exact.play("consistency", (f"method.solver={solver}",), student=student).loss
    for solver in ("euler", "heun")
  ]
  assert losses[1] < 0.2 * losses[0]
