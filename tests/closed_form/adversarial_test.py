"""The best discriminators of two densities, and the MMD between two Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import adversarial as adv
from distill_jax.losses import f_divergence as fd
from distill_jax.losses import mmd

MEAN, VARIANCE = 0.4, 0.25
GRID = np.linspace(-12.0, 12.0, 4001)


@pytest.fixture(autouse=True)
def in_float64():
  with jax.enable_x64(True):
    yield


def mass(mean, variance):
  """Of a Gaussian in each cell of the grid."""
  log = -((jnp.asarray(GRID) - mean) ** 2) / (2 * variance) - jnp.log(2 * np.pi * variance) / 2
  return jnp.exp(log) * (GRID[1] - GRID[0])


def test_the_best_discriminator_is_the_log_ratio():
  """At log p / q the logistic loss is 2 log 2 - 2 JS, and stationary."""
  p, q = mass(MEAN, VARIANCE), mass(-0.3, 0.64)
  best = jnp.log(p) - jnp.log(q)

  def loss(logits):
    return jnp.sum(p * adv.logistic_real(logits) + q * adv.logistic_fake(logits))

  middle = jnp.logaddexp(jnp.log(p), jnp.log(q)) - np.log(2)
  js = jnp.sum(p * (jnp.log(p) - middle) + q * (jnp.log(q) - middle)) / 2
  np.testing.assert_allclose(loss(best), 2 * np.log(2) - 2 * js, rtol=1e-10)
  np.testing.assert_allclose(jax.grad(loss)(best), 0, atol=1e-15)
  ratio = fd.density_ratio(best[:, None], lower=0.0, upper=jnp.inf, bound=5.0)
  np.testing.assert_allclose(ratio, jnp.clip(p / q, np.exp(-5), np.exp(5)), rtol=1e-9)


def test_the_best_hinge_discriminator_has_the_total_variation():
  """At sign(p - q) the hinge loss is 2 - 2 TV."""
  p, q = mass(MEAN, VARIANCE), mass(-0.3, 0.64)
  logits = jnp.sign(p - q)
  loss = jnp.sum(p * adv.hinge_real(logits) + q * adv.hinge_fake(logits))
  np.testing.assert_allclose(loss, 2 - jnp.sum(jnp.abs(p - q)), rtol=1e-10)


def expected_kernel(difference, variances, bandwidth):
  """E k(x, y) for Gaussians in one dimension."""
  total = bandwidth**2 + variances
  return np.sqrt(bandwidth**2 / total) * np.exp(-(difference**2) / (2 * total))


@pytest.mark.parametrize("bandwidth", [0.5, 2.0])
def test_rbf_mmd_between_gaussians(bandwidth):
  m, s = -0.3, 0.8
  z = jax.scipy.special.ndtri((np.arange(1500) + 0.5) / 1500)[:, None]
  x, y = m + s * z, MEAN + np.sqrt(VARIANCE) * z
  want = (
    expected_kernel(0, 2 * s**2, bandwidth)
    + expected_kernel(0, 2 * VARIANCE, bandwidth)
    - 2 * expected_kernel(m - MEAN, s**2 + VARIANCE, bandwidth)
  )
  np.testing.assert_allclose(mmd.rbf_mmd(x, y, bandwidths=[bandwidth]), want, rtol=2e-3)
  points, w = np.polynomial.hermite_e.hermegauss(40)
  w = w / w.sum()
  kernel = mmd.rbf_kernel(
    m + s * points[:, None],
    MEAN + np.sqrt(VARIANCE) * jnp.asarray(points)[:, None],
    bandwidths=[bandwidth],
  )
  np.testing.assert_allclose(
    w @ kernel @ w, expected_kernel(m - MEAN, s**2 + VARIANCE, bandwidth), rtol=1e-5
  )
