"""Flow maps on Gaussians, where flows and their averages are exact, and targets of teachers.

Expectations are Gauss-Hermite or binomial sums: exact, not sampled.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import consistency as c
from distill_jax.losses import continuous_consistency as cc
from distill_jax.losses import flow_maps as fm
from distill_jax.losses import trajectories as tr

MEAN, STD = 0.7, 0.5


@pytest.fixture(autouse=True)
def in_float64():
  with jax.enable_x64(True):
    yield


def normals(shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def nodes(n=6):
  """Two independent normals and their weights: [n * n, 1], [n * n, 1], [n * n]."""
  x, w = np.polynomial.hermite_e.hermegauss(n)
  first, second = (jnp.asarray(a.reshape(-1, 1)) for a in np.meshgrid(x, x))
  return first, second, jnp.asarray(np.outer(w, w).ravel() / w.sum() ** 2)


# Flow maps on x_t = (1 - t) x0 + t eps


def flow_path(t, x):
  t = c.expand(t, x)
  return (1 - t) * MEAN, ((1 - t) * STD) ** 2 + t**2


def flow_velocity(x, t):
  mean, variance = flow_path(t, x)
  t = c.expand(t, x)
  return -MEAN + (t - (1 - t) * STD**2) / variance * (x - mean)


def flow_map(x, t, r):
  (m_t, v_t), (m_r, v_r) = flow_path(t, x), flow_path(r, x)
  return m_r + jnp.sqrt(v_r / v_t) * (x - m_t)


def average_velocity(x, t, r):
  return (x - flow_map(x, t, r)) / c.expand(t - r, x)


TIMES = np.array([0.2, 0.5, 0.9, 1.0]), np.array([0.0, 0.3, 0.1, 0.0])


def test_the_average_velocity_satisfies_meanflow_and_its_successor():
  x, (t, r) = normals((4, 3)), map(jnp.asarray, TIMES)
  v = flow_velocity(x, t)
  u, du = jax.jvp(average_velocity, (x, t, r), (v, jnp.ones(4), jnp.zeros(4)))
  np.testing.assert_allclose(fm.meanflow_target(v, du, t, r), u, atol=1e-14)
  np.testing.assert_allclose(fm.jump(x, u, t, r), flow_map(x, t, r), atol=1e-15)
  assert jnp.max(fm.meanflow(u, fm.meanflow_target(v, du, t, r))) < 1e-24
  assert jnp.max(fm.improved_meanflow(u, du, v, v, t, r)) < 1e-24


def test_two_half_jumps_are_a_whole_one():
  """The shortcut identity; its time runs the other way, from noise at 0 to data at 1."""
  x, d = normals((3, 2)), jnp.array([0.5, 0.25, 0.125])
  t = jnp.array([0.5, 0.25, 0.0])

  def shortcut(x, t, d):
    return -average_velocity(x, 1 - t, 1 - t - d)

  first = shortcut(x, t, d / 2)
  middle = fm.shortcut_midpoint(x, first, d / 2, clip=None)
  second = shortcut(middle, t + d / 2, d / 2)
  np.testing.assert_allclose(
    fm.shortcut_target(first, second, clip=None), shortcut(x, t, d), atol=1e-14
  )


def test_reflow_of_gaussians_is_straight():
  """z -> m + A z has one line through each point, so the flow of the pairs has no loss at all."""
  a = normals((3, 3))
  root, shift = a @ a.T + jnp.eye(3), normals((3,), 1)
  z, t = normals((6, 3), 2), jnp.linspace(0.0, 1.0, 6)
  data = shift + z @ root

  def velocity(x, t):
    t = t[:, None, None]
    mixing = (1 - t) * jnp.eye(3) + t * root
    start = jnp.linalg.solve(mixing, (x - t[:, 0] * shift)[..., None])[..., 0]
    return shift + start @ root - start

  loss = fm.rectified_flow(velocity(fm.interpolate(z, data, t), t), z, data)
  assert jnp.max(loss) < 1e-25
  one_step = fm.jump(z, velocity(z, jnp.zeros(6)), jnp.zeros(6), jnp.ones(6))
  np.testing.assert_allclose(one_step, data, atol=1e-13)


def test_independent_pairs_leave_the_variance_of_the_velocity():
  """Flow matching at its optimum: E (v(x_t) - (eps - x0))^2 = Var(eps - x0) - Cov^2 / Var x_t."""
  z, eps, w = nodes()
  x0, t = MEAN + STD * z, jnp.full(w.shape, 0.3)
  x = fm.interpolate(x0, eps, t)
  got = jnp.sum(w * fm.rectified_flow(flow_velocity(x, t), x0, eps))
  covariance, variance = 0.3 - 0.7 * STD**2, (0.7 * STD) ** 2 + 0.3**2
  np.testing.assert_allclose(got, 1 + STD**2 - covariance**2 / variance, rtol=1e-12)


# Normalised losses with noisy velocities


def stationary(loss, dimension):
  """The u at which E grad loss = 0: u, v in R^D, each v_j is 2 with probability 0.8, else -1.

  Examples of the batch are the possible numbers of 2s among the v_j, weighted by the binomial.
  """
  high = np.arange(dimension + 1)
  logs = [math.lgamma(n + 1) for n in (dimension, *high, *(dimension - high))]
  count = logs[0] - np.array(logs[1 : dimension + 2]) - np.array(logs[dimension + 2 :])
  w = np.exp(count + high * math.log(0.8) + (dimension - high) * math.log(0.2))
  v = jnp.where(jnp.arange(dimension) < high[:, None], 2.0, -1.0)
  slope = jax.jit(jax.grad(lambda u: jnp.sum(w * loss(jnp.full(v.shape, u), v))))
  low, top = 1.0, 2.0
  for _ in range(40):
    middle = (low + top) / 2
    low, top = (middle, top) if slope(middle) < 0 else (low, middle)
  return middle


def scm_like(u, v):
  return cc.scm(u, cc.normalised(jax.lax.stop_gradient(v - u)))


NORMALISED = {"meanflow": fm.meanflow, "sqrt": lambda u, v: fm.meanflow(u, v, p=0.5)} | {
  "opt_grad": fm.meanflow_normalised,
  "scm": scm_like,
}


def test_the_squared_error_has_the_mean_velocity():
  np.testing.assert_allclose(stationary(lambda u, v: fm.meanflow(u, v, p=0.0), 1), 1.4, atol=1e-9)


@pytest.mark.parametrize("name", NORMALISED)
def test_normalising_biases_few_dimensions_and_spares_many(name):
  """A trap for tests: in one dimension these losses do not have the mean velocity, 1.4, as optimum.

  With a teacher's velocity, the same for equal x_t, or with images, it does no harm.
  """
  bias = [stationary(NORMALISED[name], dimension) - 1.4 for dimension in (1, 16, 256)]
  assert bias[0] > 0.4
  assert bias[0] > bias[1] > bias[2] > 0
  assert bias[2] < 0.02


# Targets from a teacher's steps


def test_progressive_target_reproduces_two_steps_of_ddim():
  x, first, second = (normals((4, 3), seed) for seed in range(3))
  t, s, r = (tr.vp(jnp.asarray(a)) for a in ([-9.0, -3, 0, 4], [-6.0, -2, 1, 6], [-4.0, -1, 3, 9]))
  end = tr.ddim_step(tr.ddim_step(x, first, t, s), second, s, r)
  target = tr.inverse_ddim(x, end, t, r)
  np.testing.assert_allclose(tr.ddim_step(x, target, t, r), end, atol=1e-15)


def test_the_target_in_noise_levels_reproduces_two_steps_of_euler():
  x, first, second = (normals((3, 2), seed) for seed in range(3))
  t, s, r = jnp.array([80.0, 3, 0.1]), jnp.array([40.0, 2, 0.02]), jnp.array([10.0, 1, 0.002])
  end = c.euler_step(c.euler_step(x, first, t, s), second, s, r)
  target = tr.euler_denoised(x, end, t, r)
  np.testing.assert_allclose(c.euler_step(x, target, t, r), end, atol=1e-14)
  ones = jnp.ones(3)
  np.testing.assert_allclose(
    tr.inverse_ddim(x, end, (ones, t), (ones, r)), target, rtol=1e-12, atol=1e-14
  )


def test_a_target_that_ends_on_the_data_is_the_teachers_last_word():
  x, first, second = (normals((2, 3), seed) for seed in range(3))
  t, s = tr.vp(jnp.array([-2.0, 0.0])), tr.vp(jnp.array([1.0, 3.0]))
  clean = (jnp.ones(2), jnp.zeros(2))
  end = tr.ddim_step(tr.ddim_step(x, first, t, s), second, s, clean)
  np.testing.assert_allclose(tr.inverse_ddim(x, end, t, clean), second, atol=1e-15)


def test_the_signal_ode_is_ddim_with_its_noise_held_fixed():
  y, eps, denoised = (normals((4, 2), seed) for seed in range(3))
  now, then = jnp.array([-9.0, -2, 0, 3]), jnp.array([-6.0, -1, 2, 7])
  x = tr.boot_input(y, eps, now)
  (alpha, sigma) = (c.expand(a, x) for a in tr.vp(then))
  want = (tr.ddim_step(x, denoised, tr.vp(now), tr.vp(then)) - sigma * eps) / alpha
  np.testing.assert_allclose(tr.boot_target(y, denoised, now, then), want, rtol=1e-11, atol=1e-11)


def test_addim_adds_the_stated_power_of_noise():
  """|x_s - alpha_s x0|^2 / D is DDIM's plus the variance of its formula, at every example alike."""
  now, then = (tr.vp(jnp.asarray(a)) for a in ([-1.0, 2.0], [1.0, 5.0]))
  x, x0 = normals((2, 7)), jnp.zeros((2, 7))
  ddim, addim = tr.ddim_step(x, x0, now, then), tr.addim_step(x, x0, now, then, eta=0.1)
  extra = (then[0] - now[0] * then[1] / now[1]) ** 2 * 0.1 / (2 + (now[1] / now[0]) ** 2)
  power = jnp.mean(addim**2, axis=-1) - jnp.mean(ddim**2, axis=-1)
  np.testing.assert_allclose(power, extra, rtol=1e-12)
  np.testing.assert_allclose(tr.addim_step(x, x0, now, then, eta=0.0), ddim, atol=1e-15)
