"""Distillation of trajectories on Gaussians, where flows, their averages and students are exact.

Expectations are Gauss-Hermite or binomial sums: exact, not sampled.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.discretization import ascending_sigmas
from distill_jax.losses import consistency as c
from distill_jax.losses import continuous_consistency as cc
from distill_jax.losses import flow_maps as fm
from distill_jax.losses import trajectories as tr

MEAN, STD, SIGMA_DATA = 0.7, 0.5, 0.8


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


# Consistency models on x_t = x0 + t eps, x0 ~ N(MEAN, STD^2)


def one_step_std(levels, teacher):
  """Standard deviation, relative to the data's, of samples by the student that the loss trains.

  The student is x -> MEAN + k_n (x - MEAN) at each level, the identity at the lowest; k_n minimises
  our loss against k_(n-1). As the loss is a square in k, two gradients give its minimum.
  """
  sigmas = ascending_sigmas(levels, levels)
  z, eps, w = nodes(4)
  x0 = MEAN + STD * z

  def denoise(x, t):
    return (STD**2 * x + c.expand(t**2, x) * MEAN) / c.expand(STD**2 + t**2, x)

  def student(k, x):
    return MEAN + k * (x - MEAN)

  def next_gain(k, pair):
    t, then = (jnp.broadcast_to(s, w.shape) for s in pair)
    x = x0 + c.expand(t, x0) * eps
    clean = x0 if teacher == "data" else denoise(x, t)
    x_then = c.euler_step(x, clean, t, then)
    if teacher == "heun":
      x_then = c.heun_step(x, clean, x_then, denoise(x_then, then), t, then)

    def loss(new):
      return jnp.sum(w * c.consistency(student(new, x), student(k, x_then)))

    slope = jax.grad(loss)
    at_0, at_1 = slope(0.0), slope(1.0)
    return at_0 / (at_0 - at_1), None

  gain, _ = jax.lax.scan(next_gain, 1.0, (sigmas[1:], sigmas[:-1]))
  return gain * jnp.sqrt(STD**2 + sigmas[-1] ** 2) / jnp.sqrt(STD**2 + sigmas[0] ** 2)


@pytest.mark.parametrize("levels", [18, 40])
def test_training_and_euler_distillation_have_the_known_recursion(levels):
  s = ascending_sigmas(levels, levels)
  gain = jnp.prod((STD**2 + s[1:] * s[:-1]) / (STD**2 + s[1:] ** 2))
  want = gain * jnp.sqrt((STD**2 + s[-1] ** 2) / (STD**2 + s[0] ** 2))
  np.testing.assert_allclose(one_step_std(levels, "data"), want, rtol=1e-12)
  np.testing.assert_allclose(one_step_std(levels, "euler"), want, rtol=1e-12)


@pytest.mark.parametrize(
  ("teacher", "levels", "want"),
  [
    ("data", 18, 0.846),
    ("data", 40, 0.930),
    ("data", 160, 0.982),
    ("data", 1280, 0.998),
    ("heun", 18, 1.055),
    ("heun", 40, 1.010),
    ("heun", 160, 1.0006),
  ],
)
def test_discretisation_shrinks_training_and_heun_is_of_second_order(teacher, levels, want):
  atol = 5e-5 if want == 1.0006 else 5e-4
  np.testing.assert_allclose(one_step_std(levels, teacher), want, atol=atol)


def test_the_exact_consistency_function_has_no_loss_on_exact_trajectories():
  x0, eps = MEAN + STD * normals((5, 3)), normals((5, 3), 1)
  t, r = jnp.linspace(0.1, 60, 5), jnp.linspace(0.05, 20, 5)
  x = x0 + c.expand(t, x0) * eps

  def f(x, t):
    return MEAN + STD * (x - MEAN) / c.expand(jnp.sqrt(STD**2 + t**2), x)

  ratio = c.expand(jnp.sqrt((STD**2 + r**2) / (STD**2 + t**2)), x)
  x_r = MEAN + ratio * (x - MEAN)
  assert jnp.max(c.ect(f(x, t), f(x_r, r), t, r)) < 1e-14
  assert jnp.max(c.consistency(f(x, t), f(x_r, r))) < 1e-28


def test_fine_steps_have_the_gradient_of_the_continuous_loss():
  x, t = 3 * normals((6, 2)), jnp.linspace(0.3, 4, 6)
  clean = normals((6, 2), 1)

  def student(p, x, t):
    return p[0] * x / c.expand(1 + t, x) + jnp.tanh(p[1] * x + c.expand(t, x))

  def discrete(p, step):
    then = c.euler_step(x, clean, t, t - step)
    distance = c.consistency(student(p, x, t), student(p, then, t - step)) * x.shape[1]
    return jnp.sum(distance) / (2 * step)

  def continuous(p):
    slope = (clean - x) / c.expand(t, x)
    output, derivative = jax.jvp(lambda x, t: student(p, x, t), (x, t), (slope, -jnp.ones(6)))
    return jnp.sum(cc.continuous(output, derivative))

  p = jnp.array([0.8, -0.4])
  want = jax.grad(continuous)(p)
  gaps = [jnp.abs(jax.grad(discrete)(p, step) - want).max() for step in (1e-4, 1e-5)]
  assert gaps[1] < 1e-4 * jnp.abs(want).max()
  np.testing.assert_allclose(gaps[0] / gaps[1], 10, rtol=0.05)


# sCM on x_t = cos t x0 + sin t z, z ~ N(0, SIGMA_DATA^2)


def trig_path(t, x):
  """Mean and variance of x_t."""
  t = c.expand(t, x)
  variance = (jnp.cos(t) * STD) ** 2 + (jnp.sin(t) * SIGMA_DATA) ** 2
  return jnp.cos(t) * MEAN, variance


def trig_velocity(x, t):
  mean, variance = trig_path(t, x)
  t = c.expand(t, x)
  rate = jnp.sin(t) * jnp.cos(t) * (SIGMA_DATA**2 - STD**2)
  return -jnp.sin(t) * MEAN + rate / variance * (x - mean)


def exact_network(scaled, t):
  """F of the exact consistency function f = cos t x - sin t sd F(x / sd, t)."""
  x = SIGMA_DATA * scaled
  mean, variance = trig_path(t, x)
  f = MEAN + STD * (x - mean) / jnp.sqrt(variance)
  t = c.expand(t, x)
  return (jnp.cos(t) * x - f) / (jnp.sin(t) * SIGMA_DATA)


def some_network(scaled, t):
  t = c.expand(t, scaled)
  return 0.3 * scaled * jnp.cos(2 * t) + jnp.tanh(scaled[..., ::-1] + t)


def tangent(network, x, t, velocity, **kwargs):
  speed = jnp.cos(t) * jnp.sin(t)
  along = (c.expand(speed, x) * velocity / SIGMA_DATA, speed)
  out, jvp = jax.jvp(network, (x / SIGMA_DATA, t), along)
  return cc.scm_tangent(out, velocity, x, jvp, t, sigma_data=SIGMA_DATA, **kwargs)


ANGLES = np.array([0.05, 0.4, 0.9, 1.3, 1.55])


@pytest.mark.parametrize("rcm", [False, True])
def test_the_tangent_is_cos_t_times_the_derivative_of_f(rcm):
  x, t = normals((5, 2)), jnp.asarray(ANGLES)
  velocity = trig_velocity(x, t)

  def f(x, t):
    wide = c.expand(t, x)
    network = some_network(x / SIGMA_DATA, t)
    return jnp.cos(wide) * x - jnp.sin(wide) * SIGMA_DATA * network

  slope = jax.jvp(f, (x, t), (velocity, jnp.ones(5)))[1]
  got = tangent(some_network, x, t, velocity, rcm=rcm)
  np.testing.assert_allclose(got, jnp.cos(c.expand(t, x)) * slope, atol=1e-14)


def test_the_tangent_of_the_exact_consistency_function_is_zero():
  x, t = normals((5, 2)), jnp.asarray(ANGLES)
  np.testing.assert_allclose(tangent(exact_network, x, t, trig_velocity(x, t)), 0, atol=1e-13)
  out = exact_network(x / SIGMA_DATA, t)
  assert jnp.max(cc.scm(out, cc.normalised(jnp.zeros_like(out)))) == 0


def test_the_mean_tangent_of_training_is_that_of_distillation():
  """Before it is normalised: given x_t the data's velocity averages to the teacher's."""
  t = jnp.full(6, 0.8)
  nodes_, weights = np.polynomial.hermite_e.hermegauss(6)
  x = jnp.full((6, 1), 0.9)
  mean, variance = trig_path(t, x)
  cos, sin = math.cos(0.8), math.sin(0.8)
  posterior = MEAN + cos * STD**2 / variance * (x - mean)
  spread = jnp.sqrt(STD**2 - (cos * STD**2) ** 2 / variance)
  x0 = posterior + spread * nodes_[:, None]
  velocity = cc.trigflow_velocity(x0, (x - cos * x0) / sin, t)
  average = jnp.sum(weights[:, None] * tangent(some_network, x, t, velocity), axis=0)
  want = tangent(some_network, x, t, trig_velocity(x, t))[0]
  np.testing.assert_allclose(average / weights.sum(), want, atol=1e-13)


def test_difference_quotients_approach_the_jvp():
  x, t = normals((5, 2)), jnp.asarray(ANGLES)
  velocity = SIGMA_DATA * some_network(x / SIGMA_DATA, t)

  def network(x, t):
    return some_network(x / SIGMA_DATA, t)

  now = network(x, t)
  slope = jax.jvp(network, (x, t), (velocity, jnp.ones(5)))[1]
  still = jax.jvp(network, (x, t), (jnp.zeros_like(x), jnp.ones(5)))[1]

  def gaps(h):
    moved = network(cc.trig_step(x, velocity, h), t - h)
    whole = jnp.abs(cc.difference_quotient(now, moved, h) - slope).max()
    partial = jnp.abs(cc.difference_quotient(now, network(x, t - h), h) - still).max()
    return jnp.stack([whole, partial])

  assert jnp.all(gaps(1e-5) < 1e-3)
  np.testing.assert_allclose(gaps(1e-3) / gaps(1e-4), 10, rtol=0.05)


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
