"""Every schedule and prediction there and back in float64, and the conventions of guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion import schedules as s

ALL = dict(
  edm=s.edm(),
  ve=s.ve(),
  flow=s.flow(clean=1e-3, noisy=0.999),
  shifted=s.flow(3.0, clean=1e-3, noisy=0.999),
  trigflow=s.trigflow(0.5, clean=1e-3, noisy=1.57),
  vp_linear=s.vp_linear(),
  vp_cosine=s.vp_cosine(-12.0, 12.0),
)
SIGMA_DATA = 0.7


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def times(schedule):
  return jnp.linspace(schedule.clean, schedule.noisy, 7)[1:-1]


@pytest.mark.parametrize("name", ALL)
def test_the_time_of_a_ratio_is_the_time(name):
  schedule = ALL[name]
  t = jnp.linspace(schedule.clean, schedule.noisy, 33)
  ratio = schedule.sigma(t) / schedule.alpha(t)
  np.testing.assert_allclose(schedule.time(ratio), t, rtol=1e-9, atol=1e-12)
  assert bool(jnp.all(jnp.diff(ratio) > 0))
  np.testing.assert_allclose(s.log_snr(schedule, t), -2 * jnp.log(ratio), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ALL)
def test_rates_are_differences(name):
  schedule = ALL[name]
  t = times(schedule)
  step = 1e-6 * t
  for f, rate in zip(schedule[:2], s.rates(schedule, t), strict=True):
    np.testing.assert_allclose(rate, (f(t + step) - f(t - step)) / (2 * step), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["trigflow", "vp_linear", "vp_cosine"])
def test_variance_is_preserved(name):
  scale = 0.5 if name == "trigflow" else 1.0
  schedule = ALL[name]
  t = times(schedule)
  square = schedule.alpha(t) ** 2 + (schedule.sigma(t) / scale) ** 2
  np.testing.assert_allclose(square, jnp.ones(5), rtol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_every_prediction_is_its_definition_and_comes_back(name):
  schedule = ALL[name]
  t = times(schedule)
  x0, eps = jax.random.normal(jax.random.key(0), (2, 5, 3))
  x_t = s.noised(schedule, x0, eps, t)
  alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
  d_alpha, d_sigma = (r[:, None] for r in s.rates(schedule, t))
  angle = jnp.arctan2(sigma, alpha * SIGMA_DATA)
  x_hat = x_t * SIGMA_DATA / jnp.sqrt(sigma**2 + (alpha * SIGMA_DATA) ** 2)
  truth = dict(
    x0=x0,
    epsilon=eps,
    v=alpha * eps - sigma * x0,
    flow=d_alpha * x0 + d_sigma * eps,
    score=-eps / sigma,
    F=(jnp.cos(angle) * x_hat - x0) / (jnp.sin(angle) * SIGMA_DATA),
  )
  assert tuple(truth) == s.PREDICTIONS
  for source in truth:
    for target in truth:
      got = s.convert(truth[source], x_t, t, schedule, source, target, sigma_data=SIGMA_DATA)
      np.testing.assert_allclose(
        got, truth[target], rtol=1e-6, atol=1e-7, err_msg=f"{source} to {target}"
      )


def test_convert_at_the_ends_of_rectified_flow():
  """A velocity gives the image at pure noise, and the noise at pure image."""
  x0, eps = jax.random.normal(jax.random.key(0), (2, 1, 3))
  schedule = s.flow()
  for t, x_t in ((1.0, eps), (0.0, x0)):
    for target, want in (("x0", x0), ("epsilon", eps)):
      got = s.convert(eps - x0, x_t, jnp.array([t]), schedule, "flow", target)
      np.testing.assert_allclose(got, want, atol=1e-12)


def test_an_unknown_prediction_is_refused():
  x = jnp.ones((1, 2))
  with pytest.raises(ValueError, match="No prediction 'u': one of x0, epsilon"):
    s.convert(x, x, jnp.ones(1), s.flow(), "u", "x0")


def test_time_at_infinite_noise_and_the_shift_towards_noise():
  assert float(s.flow().time(jnp.array(jnp.inf))) == 1
  assert float(s.flow(3.0).time(jnp.array(jnp.inf))) == 1
  # Esser et al.: t_m = shift t / (1 + (shift - 1) t) on the unshifted schedule
  assert float(s.flow(3.0).sigma(jnp.array(0.5))) == pytest.approx(0.75)


def test_guidance_of_1_is_none_of_0_unconditional_and_each_example_may_have_its_own():
  u, c = jnp.zeros((3, 2)), jnp.ones((3, 2))
  np.testing.assert_array_equal(s.guided(u, c, 1.0), c)
  np.testing.assert_array_equal(s.guided(u, c, 0.0), u)
  got = s.guided(u, c, jnp.array([0.0, 1.0, 7.5]))
  np.testing.assert_array_equal(got[:, 0], jnp.array([0, 1, 7.5]))


def test_guidance_of_other_code_bases():
  """cond + g (cond - uncond) with their g is uncond + scale (cond - uncond) with ours."""
  u, c, g = 2.0, 5.0, 3.0
  ours = u + s.guidance_scale(g, "cond") * (c - u)
  assert ours == c + g * (c - u)
  assert s.guidance_scale(g, "uncond") == g
  with pytest.raises(ValueError, match="No convention of guidance 'w'"):
    s.guidance_scale(g, "w")


def test_karras_levels():
  grid = s.karras_sigmas(5, 0.01, 20.0)
  np.testing.assert_allclose(grid[jnp.array([0, -1])], jnp.array([20.0, 0.01]), rtol=1e-12)
  np.testing.assert_allclose(
    jnp.diff(grid ** (1 / 7)), jnp.full(4, grid[1] ** (1 / 7) - grid[0] ** (1 / 7))
  )
  np.testing.assert_allclose(s.karras_sigma(jnp.linspace(0, 1, 5), 0.01, 20.0), grid)
  np.testing.assert_allclose(s.karras_sigmas(1), jnp.array([80.0]))


def test_expand():
  x = jnp.ones((2, 3, 4, 1))
  assert s.expand(jnp.ones(2), x).shape == (2, 1, 1, 1) and s.expand(0.5, x).shape == ()
