"""Denoising losses: weights, minimisers, and targets between two noise levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import denoising as den


def test_expand():
  x = jnp.zeros((2, 3, 4))
  assert den.expand(jnp.ones(2), x).shape == (2, 1, 1)
  assert den.expand(2.0, x).shape == ()
  assert den.expand(jnp.ones((2, 1, 4)), x).shape == (2, 1, 4)
  assert den.expand(jnp.ones(2), jnp.ones(2)).shape == (2,)


def test_squared_error_weighs_examples_and_widens():
  prediction, target = jnp.ones((2, 3), jnp.bfloat16), jnp.zeros((2, 3), jnp.bfloat16)
  got = den.squared_error(prediction, target, weight=jnp.array([2.0, 3.0]))
  np.testing.assert_allclose(got, [[2] * 3, [3] * 3])
  assert got.dtype == jnp.float32


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_edm_weight_evens_out_the_inner_network(sigma):
  """lambda c_out^2 = 1."""
  c_out = sigma * 0.5 / np.hypot(sigma, 0.5)
  got = den.edm_weight(jnp.float32(sigma), sigma_data=0.5) * c_out**2
  np.testing.assert_allclose(got, 1, rtol=1e-5)


def test_edm_log_variance():
  d, x, sigma = jnp.ones((2, 3)), jnp.zeros((2, 3)), jnp.array([0.1, 2.0])
  plain = den.edm(d, x, sigma)
  np.testing.assert_allclose(den.edm(d, x, sigma, log_variance=0.0), plain, rtol=1e-6)
  best = jnp.log(plain[:, 0])  # the log of the weighted error is stationary
  grad = jax.grad(lambda u: den.edm(d, x, sigma, log_variance=u).sum())(best)
  np.testing.assert_allclose(grad, 0, atol=1e-5)


def moments(s, t, mean=0.4, variance=0.3):
  """Of x0 ~ N(mean, variance): x_t and the target at each node, and the nodes' weights."""
  x, w = np.polynomial.hermite_e.hermegauss(4)
  x0, eps, noise = (a.ravel() for a in np.meshgrid(x, x, x, indexing="ij"))
  w = np.einsum("i,j,k->ijk", w, w, w).ravel() / w.sum() ** 3
  x0 = mean + np.sqrt(variance) * x0
  x_s = (1 - s) * x0 + s * eps
  levels = np.full(len(x0), s), np.full(len(x0), t)
  found = den.subinterval(jnp.asarray(x_s)[:, None], jnp.asarray(noise)[:, None], *levels)
  return np.asarray(found.x_t)[:, 0], np.asarray(found.flow)[:, 0], w


@pytest.mark.parametrize(("s", "t"), [(0.0, 1.0), (0.0, 0.6), (0.5, 0.9), (0.3, 1.0)])
def test_subinterval_has_the_right_marginal_and_velocity(s, t):
  """x_t is distributed as (1 - t) x0 + t eps, and the target's mean given it is E[eps - x0]."""
  mean, variance = 0.4, 0.3
  with jax.enable_x64(True):
    x_t, flow, w = moments(s, t, mean, variance)
  np.testing.assert_allclose(w @ x_t, (1 - t) * mean, atol=1e-12)
  centred = x_t - w @ x_t
  var_t = (1 - t) ** 2 * variance + t**2
  np.testing.assert_allclose(w @ centred**2, var_t, rtol=1e-10)
  np.testing.assert_allclose(w @ flow, -mean, rtol=1e-10)
  slope = (w @ (flow * centred)) / var_t
  np.testing.assert_allclose(slope, (t - (1 - t) * variance) / var_t, rtol=1e-9, atol=1e-12)


def test_subinterval_weight():
  x = jnp.zeros((1, 2))
  found = den.subinterval(x, x, jnp.array([0.5]), jnp.array([0.9]))
  np.testing.assert_allclose(found.weight, 1 / (0.9**2 - (0.1 / 0.5) ** 2 * 0.5**2), rtol=1e-6)
