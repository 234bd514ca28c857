"""Samplers and flow maps against exact answers: orders of convergence, laws of what is drawn."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion import analytic, samplers, schedules, steps
from distill_jax.evals import distances


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def gaussian():
  root = jax.random.normal(jax.random.key(0), (3, 3))
  return analytic.gaussian(jnp.array([1.0, -2.0, 0.5]), root @ root.T)


def test_the_flow_map_of_a_gaussian_solves_the_ode():
  """x_s = mu + (S + s^2)^(1/2) (S + t^2)^(-1/2) (x_t - mu), against Runge-Kutta 4."""
  g = gaussian()
  x = 3 * jax.random.normal(jax.random.key(1), (4, 3))
  sigma_from, sigma_to, n = 3.0, 0.5, 2000
  velocity = steps.sigma_velocity(g.denoise)

  def step(x, s, t):
    h = t - s
    a = velocity(x, s)
    b = velocity(x + h / 2 * a, s + h / 2)
    c = velocity(x + h / 2 * b, s + h / 2)
    d = velocity(x + h * c, t)
    return x + h / 6 * (a + 2 * b + 2 * c + d)

  got = steps.integrate(step, x, jnp.linspace(sigma_from, sigma_to, n + 1))
  np.testing.assert_allclose(got, g.flow_map(x, sigma_from, sigma_to), rtol=0, atol=1e-13)


ORDERS = {
  "euler": (samplers.euler, 1),
  "heun": (samplers.heun, 2),
  "dpm_solver_pp_2m": (samplers.dpm_solver_pp_2m, 2),
}


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name):
  sampler, order = ORDERS[name]
  g = gaussian()
  x = g.mean + 80 * jax.random.normal(jax.random.key(2), (8, 3))
  want = g.flow_map(x, 80.0, 0.0)
  low = 1e-5  # what the last step, to 0, leaves out is of its square

  def error(n):
    return float(jnp.max(jnp.abs(sampler(g.denoise, x, schedules.karras_sigmas(n, low)) - want)))

  errors = [error(n) for n in (80, 160, 320)]
  rates = -np.diff(np.log2(errors))
  np.testing.assert_allclose(rates, order, atol=0.15)


SCHEDULES = {
  "flow": (schedules.flow(), 0.999, 1e-3),
  "shifted flow": (schedules.flow(3.0), 0.999, 1e-3),
  "trigflow": (schedules.trigflow(), 1.57, 1e-3),
  "vp linear": (schedules.vp_linear(), 1.0, 1e-3),
  "ve": (schedules.ve(), 80.0**2, 1e-4),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("stage", [0.5, 1.0])
def test_every_schedule_follows_the_same_flow(name, stage):
  schedule, begin, end = SCHEDULES[name]
  g = gaussian()
  alpha, sigma = schedule.alpha(jnp.array(begin)), schedule.sigma(jnp.array(begin))
  x = alpha * g.mean + jax.random.normal(jax.random.key(3), (5, 3)) * sigma

  def error(n):
    u = jnp.linspace(0.0, 1.0, n + 1)
    times = begin * (end / begin) ** u if name == "ve" else begin + u * (end - begin)
    velocity = steps.schedule_velocity(g.denoise, schedule)
    got = steps.runge_kutta_2(velocity, x, times, stage=stage)
    to_alpha, to_sigma = schedule.alpha(times[-1]), schedule.sigma(times[-1])
    want = to_alpha * g.flow_map(x / alpha, sigma / alpha, to_sigma / to_alpha)
    return float(jnp.max(jnp.abs(got - want)))

  coarse, fine = error(400), error(800)
  assert fine < 2e-3
  assert np.log2(coarse / fine) > 1.7


def test_midpoint_is_of_second_order():
  g = gaussian()
  x = g.mean + 10 * jax.random.normal(jax.random.key(4), (5, 3))
  velocity = steps.sigma_velocity(g.denoise)

  def error(n):
    grid = schedules.karras_sigmas(n + 1, 0.1, 10.0)
    got = steps.integrate(lambda x, s, t: steps.midpoint_step(velocity, x, s, t), x, grid)
    return float(jnp.max(jnp.abs(got - g.flow_map(x, 10.0, 0.1))))

  np.testing.assert_allclose(np.log2(error(64) / error(128)), 2, atol=0.15)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_steps_keep_the_variance_that_they_should(eta):
  """On N(0, s^2) every step is linear: the variance of DDIM with eta follows by recursion."""
  s2, sigmas = 0.5, schedules.karras_sigmas(12, 0.01, 20.0)
  g = analytic.gaussian(jnp.zeros(1), s2 * jnp.eye(1))
  grid, variance = jnp.append(sigmas, 0.0), s2 + sigmas[0] ** 2
  for a, b in itertools.pairwise(grid):
    down = steps.ancestral_down(a, b, eta)
    gain = (s2 + a * down) / (s2 + a**2)
    variance = gain**2 * variance + b**2 - down**2
  x = jnp.sqrt(s2 + sigmas[0] ** 2) * jax.random.normal(jax.random.key(5), (200_000, 1))
  got = samplers.ddim(g.denoise, x, sigmas, jax.random.key(6), eta=eta)
  np.testing.assert_allclose(jnp.var(got), variance, rtol=0.01)


def test_one_step_of_the_exact_consistency_function_draws_the_data():
  g = gaussian()
  z = jax.random.normal(jax.random.key(7), (20_000, 3))

  def consistency(x, sigma):
    return g.flow_map(x, sigma, 0.0)

  exact = (g.mean, g.axes @ jnp.diag(g.variances) @ g.axes.T)
  one = samplers.one_step(consistency, z)
  assert distances.gaussian_w2(*distances.moments(one), *exact) < 0.06
  two = samplers.few_step(consistency, 80 * z, jnp.array([80.0, 0.5]), jax.random.key(8))
  assert distances.gaussian_w2(*distances.moments(two), *exact) < 0.06
  # the denoiser itself is not a consistency function: one step gives the mean
  blur = samplers.one_step(g.denoise, z)
  assert jnp.max(jnp.std(blur, axis=0)) < 0.1


def test_samples_of_the_grid_cover_it():
  grid = analytic.grid_mixture()
  z = jax.random.normal(jax.random.key(9), (600, 2))
  sigmas = schedules.karras_sigmas(18)
  labels = {"label": jnp.arange(600) % 6}

  def denoise(x, sigma):
    return grid.denoise(x, sigma, labels)

  real = grid.sample(jax.random.key(10), 600, labels)
  directions = distances.random_directions(jax.random.key(11), 2, 16)
  for x in (
    samplers.heun(denoise, 80 * z, sigmas),
    samplers.ancestral(denoise, 80 * z, schedules.karras_sigmas(60), jax.random.key(12)),
    samplers.stochastic_heun(denoise, 80 * z, sigmas, jax.random.key(13), steps.Churn(5, 0.05, 50)),
  ):
    modes = distances.mode_coverage(x, grid.means, grid.stds)
    assert modes.found == 25 and modes.quality > 0.95
    assert distances.sliced_wasserstein(x, real, directions) < 0.3
    rows = jnp.round(x[:, 1]) + 2
    assert jnp.mean((rows == labels["label"]) | (labels["label"] == 5)) > 0.99
