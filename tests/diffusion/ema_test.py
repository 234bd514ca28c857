"""The weights of averages, and lengths chosen after the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion import ema


def test_lengths_and_exponents_are_inverse():
  g = np.array([0.0, 0.5, 6.94, 16.97, 100.0])
  np.testing.assert_allclose(ema.std_to_exponent(ema.exponent_to_std(g)), g, atol=1e-9)
  np.testing.assert_allclose(ema.exponent_to_std(0.0), 12**-0.5)  # even weights on [0, 1]
  t = np.linspace(0, 1, 200001)
  p = t**6.94 / np.sum(t**6.94)
  mean = np.sum(p * t)
  np.testing.assert_allclose(
    ema.exponent_to_std(6.94), np.sqrt(np.sum(p * (t - mean) ** 2)), rtol=1e-4
  )


def test_repeated_steps_give_the_power_profile():
  gamma, n = 6.94, 400
  params = jnp.eye(n)  # the average then is the row of weights

  def body(average, inputs):
    row, t = inputs
    return ema.ema_step(average, row, ema.power_weight(t, gamma)), None

  weights = jax.lax.scan(body, jnp.full(n, 7.0), (params, jnp.arange(1.0, n + 1)))[0]
  np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)  # the first value is forgotten
  response = ema.power_response(n, float(ema.exponent_to_std(gamma)), n + 1)[1:]
  np.testing.assert_allclose(weights, response, atol=2e-4)
  assert np.argmax(weights) == n - 1


def test_a_response_ends_at_its_end():
  response = ema.power_response(8, 0.1, 12)
  np.testing.assert_allclose(response.sum(), 1)
  assert response[0] == 0 and (response[9:] == 0).all() and (np.diff(response[:9]) > 0).all()


def test_the_weight_does_not_round_away_late_in_a_run():
  late = ema.power_weight(jnp.float32(1e6), 16.97)
  np.testing.assert_allclose(late, 17.97e-6, rtol=1e-4)
  slow = ema.half_life_weight(jnp.float32(1e9), 5e8, interval=1.0)
  np.testing.assert_allclose(slow, np.log(2) / 5e8, rtol=1e-5)


def test_half_life_halves_and_ramps_up():
  weight = ema.half_life_weight(3.0, 10.0)
  np.testing.assert_allclose((1 - weight) ** 10, 0.5, rtol=1e-6)
  ramped = ema.half_life_weight(jnp.array([1.0, 20, 1000, 1e6]), 100.0, ramp_up=0.05)
  np.testing.assert_allclose(ramped, 1 - 0.5 ** (1 / np.array([0.05, 1, 50, 100])), rtol=1e-6)
  assert ema.half_life_weight(jnp.float32(0), 100.0, ramp_up=0.05) == 1
  traced = jax.jit(lambda t: ema.half_life_weight(t, 10.0, ramp_up=0.5))(jnp.int32(40))
  np.testing.assert_allclose(traced, weight, rtol=1e-6)


def test_averages_keep_their_dtype_and_tree():
  average = {"a": jnp.zeros(2), "b": [jnp.ones(())]}
  params = {"a": jnp.ones(2, jnp.bfloat16), "b": [jnp.zeros((), jnp.bfloat16)]}
  out = ema.ema_step(average, params, 0.25)
  assert out["a"].dtype == jnp.float32
  np.testing.assert_allclose(out["a"], 0.25)
  np.testing.assert_allclose(out["b"][0], 0.75)


def test_stored_averages_make_one_of_another_length():
  """Of a random walk of parameters, two averages stored eight times against a third."""
  n, stds = 512, (0.05, 0.1)
  walk = jnp.cumsum(jax.random.normal(jax.random.key(0), (n, 3)), axis=0)
  want = jnp.asarray(ema.power_response(n, 0.07, n + 1)[1:], jnp.float32) @ walk
  ends = np.repeat(np.arange(1, 9) * n // 8, 2)
  lengths = np.tile(stds, 8)
  stored = [
    jnp.asarray(ema.power_response(end, std, n + 1)[1:], jnp.float32) @ walk
    for end, std in zip(ends, lengths, strict=True)
  ]
  coefficients = ema.posthoc_coefficients(ends, lengths, np.array([n]), np.array([0.07]))
  np.testing.assert_allclose(coefficients.sum(0), 1)
  got = ema.posthoc_average(stored, coefficients[:, 0])
  short = stored[-2]
  assert jnp.abs(got - want).max() < 0.1 * jnp.abs(short - want).max()
  # a stored average is itself
  same = ema.posthoc_coefficients(ends, lengths, ends[-1:], lengths[-1:])[:, 0]
  np.testing.assert_allclose(same, np.eye(16)[-1], atol=1e-6)


@pytest.mark.parametrize(
  ("images", "want"), [(0, 0), (5e6, 0.005), (10e6, 0.01), (4 * 70_000 * 1000, 0.005)]
)
def test_edm2_learning_rate(images, want):
  np.testing.assert_allclose(ema.edm2_learning_rate(images, 1000), want, rtol=1e-6)
  assert ema.edm2_learning_rate(images, 1000, decay_batches=0, ramp_up=0) == jnp.float32(0.01)
