"""MeanFlow at its optimum, and what its gradient costs."""

import jax.numpy as jnp


def test_the_exact_average_velocity_has_no_gradient(exact):
  right = exact.network(exact.average_velocity, "flow")
  run = exact.play("meanflow:variant=distilled", student=right)

  def instantaneous(params, x, t, condition):
    return exact.average_velocity(params, x, t, {"second": now(t[:, 0])})

  def now(t):  # the angle of t
    return jnp.arctan2(t, (1 - t) * exact.network(exact.denoiser).sigma_data)

  wrong = exact.network(instantaneous, "flow")
  other = exact.play("meanflow:variant=distilled", student=wrong)
  assert run.loss < 1e-6 * other.loss
  assert run.grad_norm < 1e-3 * other.grad_norm


def test_the_gradient_costs_at_most_five_forward_passes(forwards):
  assert forwards("meanflow") < 5
