"""Reflow of a Gaussian: its pairs lie on lines that do not cross."""

import math

import jax.numpy as jnp
import pytest


@pytest.fixture
def straight(exact):
  """z - x of the line through x_t, where x = mean + k (20 z - mean)."""
  k = exact.std / math.sqrt(exact.std**2 + 400)

  def velocity(params, x_t, t, condition):
    z = (x_t - (1 - t) * (1 - k) * exact.mean) / ((1 - t) * k * 20 + t)
    return z - (exact.mean + k * (20 * z - exact.mean))

  return exact.network(velocity, "flow")


@pytest.mark.parametrize("variant", ["reflow", "rfpp"])
def test_the_straight_flow_fits_the_pairs_to_second_order(exact, straight, variant):
  first, second = (
    exact.play(f"reflow:variant={variant}", (f"method.solver_steps={n}",), student=straight)
    for n in (12, 24)
  )
  order = first.loss / second.loss
  assert 8 < order < 32 if variant == "reflow" else 2.5 < order < 8  # squares, and about distances
  assert second.loss < 0.01


def test_annealed_noise_is_fresh_at_first_and_the_pairs_own_at_last(exact, straight):
  after = exact.play("reflow", ("method.anneal=50",), dict(step=50), student=straight)
  plain = exact.play("reflow", (), dict(step=50), student=straight)
  assert after.loss == pytest.approx(plain.loss, rel=1e-5)
  fresh = exact.play("reflow", ("method.anneal=50",), dict(step=0), student=straight)

  def flow_matching(params, x_t, t, condition):
    return exact.average_velocity(params, x_t, t, {"second": angle(t[:, 0])})

  def angle(t):
    return jnp.arctan2(t, (1 - t) * straight.sigma_data)

  best = exact.network(flow_matching, "flow")
  unbent = exact.play("reflow", ("method.anneal=50",), dict(step=0), student=best)
  assert unbent.loss < 0.9 * fresh.loss
