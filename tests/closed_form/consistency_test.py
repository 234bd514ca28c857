"""Consistency models on Gaussians, where the consistency function and linear students are exact.

Expectations are Gauss-Hermite sums: exact, not sampled.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.discretization import ascending_sigmas
from distill_jax.losses import consistency as c
from distill_jax.losses import continuous_consistency as cc

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
