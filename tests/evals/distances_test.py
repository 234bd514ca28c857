"""Distances between samples against closed forms, brute force and SciPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from distill_jax.evals import distances as d


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def covariance(seed, n, rank=None):
  root = normal(seed, n, rank or n)
  return root @ root.T


def test_frechet_distance_is_scipys():
  for rank in (4, 2):  # regular and singular
    c1, c2, m1, m2 = covariance(0, 4, rank), covariance(1, 4, rank), normal(2, 4), normal(3, 4)
    root = scipy.linalg.sqrtm(np.asarray(c1 @ c2)).real
    want = jnp.sum((m1 - m2) ** 2) + jnp.trace(c1 + c2 - 2 * root)
    np.testing.assert_allclose(d.frechet_distance(m1, c1, m2, c2), want, rtol=1e-6)
    np.testing.assert_allclose(d.frechet_distance(m1, c1, m1, c1), 0, atol=1e-12)
  np.testing.assert_allclose(
    d.gaussian_w2(m1, jnp.diag(jnp.array([1.0, 4, 9, 0])), m1, jnp.zeros((4, 4))), 14**0.5
  )


def test_moments_are_numpys():
  x = normal(0, 50, 3)
  mean, cov = d.moments(x)
  np.testing.assert_allclose(mean, np.mean(x, axis=0))
  np.testing.assert_allclose(cov, np.cov(x.T))


def test_gaussian_kl_is_the_mean_log_ratio():
  m1, m2, c1, c2 = normal(0, 2), normal(1, 2), covariance(2, 2), covariance(3, 2) + jnp.eye(2)
  x = m1 + normal(4, 50_000, 2) @ jnp.linalg.cholesky(c1).T
  log_pdf = jax.scipy.stats.multivariate_normal.logpdf
  want = jnp.mean(log_pdf(x, m1, c1) - log_pdf(x, m2, c2))
  np.testing.assert_allclose(d.gaussian_kl(m1, c1, m2, c2), want, rtol=0.05)
  np.testing.assert_allclose(d.gaussian_kl(m1, c1, m1, c1), 0, atol=1e-12)


def test_mmd_has_its_closed_form_between_gaussians():
  x, y, b, v1, v2 = normal(0, 1500, 2), 0.5 * normal(1, 1500, 2) + 1, 0.8, 1.0, 0.25

  def kernel(v, delta):
    s = b**2 + v
    return b**2 / s * jnp.exp(-(delta**2) * 2 / (2 * s))

  want = kernel(2 * v1, 0) + kernel(2 * v2, 0) - 2 * kernel(v1 + v2, 1)
  np.testing.assert_allclose(d.mmd(x, y, bandwidth=b), want, rtol=0.1)
  assert d.mmd(x[:5], x[:5]) == 0
  np.testing.assert_allclose(d.cmmd(x[:9], y[:7]), 1000 * d.mmd(x[:9], y[:7], bandwidth=10.0))
  grad = jax.grad(lambda y: d.mmd(x[:9], y))(x[:9])
  assert jnp.isfinite(grad).all()


def test_kid_is_unbiased_and_takes_subsets():
  x, y = normal(0, 600, 3), normal(1, 600, 3)
  parts = (points.reshape(60, 1, 10, 3) for points in (x, y))
  values = jax.lax.map(lambda pair: d.kid_of_subsets(*pair), tuple(parts))
  assert abs(values.mean()) < 3 * values.std() / 60**0.5
  assert d.kid(jax.random.key(2), x, y + 1, subsets=5, size=100) > 0.1
  # subsets as large as the sets are the sets
  whole = d.kid(jax.random.key(2), x, y, subsets=3, size=1000)
  np.testing.assert_allclose(whole, d.kid_of_subsets(x[None], y[None]), rtol=1e-9)
  with pytest.raises(ValueError, match="two examples"):
    d.kid_of_subsets(x[None, :1], y[None, :1])


def test_energy_distance_is_scipys_squared():
  x, y = normal(0, 40, 1), normal(1, 25, 1) + 0.5
  want = scipy.stats.energy_distance(x[:, 0], y[:, 0]) ** 2
  np.testing.assert_allclose(d.energy_distance(x, y), want, rtol=1e-9)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (5, 8), (1, 7), (4, 6), (1, 1)])
def test_transport_on_a_line_is_exact(n, m):
  x, y = normal(0, n), normal(1, m) * 2 + 1
  want = scipy.stats.wasserstein_distance(x, y)
  np.testing.assert_allclose(d.wasserstein_1d(x, y, p=1), want, rtol=1e-12)
  # squares: copies make the sizes equal, and then sorting is optimal
  copies_x, copies_y = jnp.sort(jnp.repeat(x, m)), jnp.sort(jnp.repeat(y, n))
  want = jnp.mean((copies_x - copies_y) ** 2)
  np.testing.assert_allclose(d.wasserstein_1d(x, y), want, rtol=1e-12)
  if n == m == 6:
    x, orders = np.asarray(x), itertools.permutations(np.asarray(y))
    best = min(np.mean((x - np.array(order)) ** 2) for order in orders)
    np.testing.assert_allclose(want, best)


def test_sliced_wasserstein_of_a_shift_and_a_scale():
  x = normal(0, 100, 3)
  directions = d.random_directions(jax.random.key(1), 3, 2000)
  np.testing.assert_allclose(jnp.linalg.norm(directions, axis=0), 1)
  shift = jnp.array([1.0, 2.0, 2.0])
  # mean of (shift . direction)^2 is |shift|^2 / 3
  np.testing.assert_allclose(d.sliced_wasserstein(x, x + shift, directions), 3**0.5, rtol=0.05)
  assert d.sliced_wasserstein(x, x[::-1], directions) == 0
  one = d.sliced_wasserstein(x[:1], x[:1] + shift, directions[:, :1], p=1)
  np.testing.assert_allclose(one, jnp.abs(shift @ directions[:, 0]))


def test_neighbours_see_lost_and_invented_modes():
  a, b, c = normal(0, 40, 2), normal(1, 40, 2) + 50, normal(2, 40, 2) - 50
  real = jnp.concatenate([a, b])
  lost = d.nearest_neighbours(real, a + 0.01, k=3)
  assert lost.precision > 0.9 and 0.4 < lost.recall < 0.6 and lost.coverage < 0.6
  invented = d.nearest_neighbours(real, jnp.concatenate([a + 0.01, b + 0.01, c]), k=3)
  assert 0.6 < invented.precision < 0.7 and invented.coverage > 0.95
  same = d.nearest_neighbours(real, real, k=1)
  np.testing.assert_allclose(same[:2] + same[3:], 1)
  # every ball holds its centre alone: the neighbour on its edge is not inside
  np.testing.assert_allclose(same.density, 1)
  with pytest.raises(ValueError, match="80"):
    d.nearest_neighbours(real, real, k=80)


def test_coverage_of_modes():
  means = jnp.array([[0.0, 0], [10, 0], [0, 10]])
  x = jnp.array([[0.0, 0.1], [0.2, 0], [10, 0.29], [5, 5]])
  modes = d.mode_coverage(x, means, 0.1)
  assert modes.found == 2 and modes.quality == 0.75
  np.testing.assert_allclose(modes.shares, [2 / 3, 1 / 3, 0])
  none = d.mode_coverage(x[3:], means, jnp.full(3, 0.1))
  assert none.found == 0 and (none.shares == 0).all()


def test_float32_distances_of_equal_points_are_zero():
  x = (1000 + normal(0, 5, 3)).astype(jnp.float32)
  assert (jnp.diag(d.pairwise_distances(x, x)) == 0).all()
  assert d.energy_distance(x, x).dtype == jnp.float32
