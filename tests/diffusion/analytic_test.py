"""The analytic teachers agree with each other, with autodiff and with their own samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion import analytic


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def full_gaussian(d=3):
  root = jax.random.normal(jax.random.key(0), (d, d))
  return analytic.gaussian(jnp.arange(1.0, d + 1), root @ root.T + 0.1 * jnp.eye(d))


def small_mixture():
  return analytic.GaussianMixture(
    jnp.array([1.0, 3.0, 2.0, 2.0]),
    jax.random.normal(jax.random.key(1), (4, 3)),
    jnp.array([0.3, 0.5, 0.2, 0.7]),
    jnp.array([0, 1, 0, 2]),
  )


LABEL = {"label": jnp.array([0, 1, 2, 3, 3], jnp.int32)}


@pytest.mark.parametrize("teacher", [full_gaussian, small_mixture])
@pytest.mark.parametrize("condition", [{}, LABEL])
@pytest.mark.parametrize("sigma", [0.01, 0.7, 80.0])
def test_the_score_is_the_gradient_and_the_denoiser_is_tweedies(teacher, condition, sigma):
  teacher = teacher()
  x = (1 + sigma) * jax.random.normal(jax.random.key(2), (5, 3))
  sigma = sigma * jnp.array([1.0, 1.1, 1.2, 1.3, 1.4])
  want = jax.grad(lambda x: teacher.log_prob(x, sigma, condition).sum())(x)
  np.testing.assert_allclose(teacher.score(x, sigma, condition), want, rtol=1e-9, atol=1e-12)
  tweedie = x + sigma[:, None] ** 2 * want
  np.testing.assert_allclose(teacher.denoise(x, sigma, condition), tweedie, rtol=1e-9, atol=1e-9)


def test_a_gaussian_has_its_covariance_and_is_a_mixture_of_one():
  g = full_gaussian()
  x = jax.random.normal(jax.random.key(3), (6, 3))
  cov = g.axes @ jnp.diag(g.variances) @ g.axes.T
  want = jax.scipy.stats.multivariate_normal.logpdf(x, g.mean, cov + 0.25 * jnp.eye(3))
  np.testing.assert_allclose(g.log_prob(x, 0.5), want, rtol=1e-12)
  one = analytic.GaussianMixture(
    jnp.ones(1), jnp.ones((1, 3)), jnp.array([0.5]), jnp.zeros(1, jnp.int32)
  )
  same = analytic.gaussian(jnp.ones(3), 0.25 * jnp.eye(3))
  for name in ("denoise", "score", "log_prob"):
    got, want = getattr(one, name)(x, 0.7), getattr(same, name)(x, 0.7)
    np.testing.assert_allclose(got, want, rtol=1e-12)
  np.testing.assert_allclose(one.flow_map(x, 5.0, 0.0), same.flow_map(x, 5.0, 0.0), rtol=1e-5)


def test_a_label_keeps_its_components_and_the_null_label_all():
  m, x = small_mixture(), jnp.zeros((5, 3))
  posterior = m.responsibilities(x, 0.5, LABEL)
  assert (posterior[0, jnp.array([1, 3])] == 0).all() and (posterior[0, ::2] > 0).all()
  np.testing.assert_allclose(posterior[2], [0, 0, 0, 1])
  np.testing.assert_allclose(posterior[3], m.responsibilities(x, 0.5)[3], rtol=1e-12)
  np.testing.assert_allclose(posterior.sum(-1), 1)
  # p(x) = sum_y p(y) p(x | y)
  parts = jnp.stack([m.log_prob(x[:1], 0.5, {"label": jnp.array([y])})[0] for y in range(3)])
  total = jax.nn.logsumexp(parts + jnp.log(jnp.array([3, 3, 2]) / 8))
  np.testing.assert_allclose(m.log_prob(x[:1], 0.5)[0], total, rtol=1e-12)


def test_the_density_of_a_mixture_integrates_to_one():
  m = analytic.GaussianMixture(
    jnp.array([1.0, 0.0, 4.0]), jnp.array([[0.0], [9.0], [2.0]]), jnp.array([0.1, 1.0, 0.4]),
    jnp.arange(3),
  )  # fmt: skip
  x = jnp.linspace(-12, 16, 20001)[:, None]
  for sigma in (0.0, 1.5):
    mass = jnp.exp(m.log_prob(x, sigma)).sum() * (x[1, 0] - x[0, 0])
    np.testing.assert_allclose(mass, 1, rtol=1e-8)


def test_samples_have_the_moments_and_the_classes():
  g, m = full_gaussian(), small_mixture()
  x = g.sample(jax.random.key(4), 40000)
  cov = g.axes @ jnp.diag(g.variances) @ g.axes.T
  np.testing.assert_allclose(x.mean(0), g.mean, atol=0.05)
  np.testing.assert_allclose(jnp.cov(x.T), cov, atol=0.15)
  x = m.sample(jax.random.key(5), 40000)
  w = m.weights / m.weights.sum()
  np.testing.assert_allclose(x.mean(0), w @ m.means, atol=0.03)
  grid = analytic.grid_mixture()
  labels = jnp.repeat(jnp.arange(6), 50)
  x = grid.sample(jax.random.key(6), 300, {"label": labels})
  np.testing.assert_array_equal(jnp.round(x[:250, 1]), labels[:250] - 2)
  assert len(jnp.unique(jnp.round(x[250:, 1]))) == 5
  np.testing.assert_allclose(jnp.std(grid.sample(jax.random.key(7), 40000)), 2.01**0.5, rtol=0.01)


def test_flow_maps_compose_and_keep_the_distribution():
  for teacher, rtol in ((full_gaussian(), 1e-11), (small_mixture(), 1e-4)):
    x = 20 * jax.random.normal(jax.random.key(8), (5, 3))
    whole = teacher.flow_map(x, 20.0, 0.0, LABEL)
    middle = teacher.flow_map(x, 20.0, jnp.full(5, 1.0), LABEL)
    np.testing.assert_allclose(teacher.flow_map(middle, 1.0, 0.0, LABEL), whole, rtol=rtol)
    back = teacher.flow_map(whole, 0.0, jnp.full(5, 20.0), LABEL)
    np.testing.assert_allclose(back, x, rtol=10 * rtol)
  grid = analytic.grid_mixture()
  z = 80 * jax.random.normal(jax.random.key(9), (200, 2))
  x = grid.flow_map(z, 80.0, 0.0, steps=64)
  np.testing.assert_allclose(x, grid.flow_map(z, 80.0, 0.0, steps=256), atol=1e-3)
  centre = jnp.round(x)
  assert (jnp.abs(centre) <= 2).all()
  np.testing.assert_allclose(jnp.std(x - centre), 0.1, rtol=0.1)


def test_empirical_data_of_images():
  data = jax.random.normal(jax.random.key(10), (7, 2, 2, 3))
  teacher = analytic.empirical(data)
  x = data[:3] + 0.5 * jax.random.normal(jax.random.key(11), (3, 2, 2, 3))
  sigma = jnp.array([0.3, 1.0, 50.0])
  square = jnp.sum((x[:, None] - data) ** 2, axis=(2, 3, 4))
  weights = jax.nn.softmax(-square / (2 * sigma[:, None] ** 2))
  want = jnp.einsum("bn,nhwc->bhwc", weights, data)
  np.testing.assert_allclose(teacher.denoise(x, sigma), want, rtol=1e-9)
  np.testing.assert_allclose(teacher.denoise(x, 1e-3), data[:3], rtol=1e-12)  # nearest
  assert teacher.sample(jax.random.key(0), 4).shape == (4, 2, 2, 3)
  one = teacher.denoise(x[:1], sigma[:1], {"label": jnp.zeros(1, jnp.int32)})
  np.testing.assert_allclose(one, want[:1], rtol=1e-9)


def test_float32_stays_stable_at_every_noise_level():
  grid = analytic.grid_mixture()
  x0 = grid.sample(jax.random.key(12), 64)
  noise = jax.random.normal(jax.random.key(13), (64, 2), jnp.float32)
  for sigma in (1e-3, 0.05, 1.0, 80.0):
    x = x0 + jnp.float32(sigma) * noise
    low = grid.denoise(x, jnp.float32(sigma))
    assert low.dtype == jnp.float32
    high = jax.tree.map(lambda a: a.astype("float64") if a.dtype == "float32" else a, grid)
    np.testing.assert_allclose(low, high.denoise(x.astype("float64"), sigma), atol=2e-3)
