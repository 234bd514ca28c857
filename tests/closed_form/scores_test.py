"""Score distillation between Gaussians, where every expectation has a closed form.

The generator is x = m + s z, the data N(MEAN, VARIANCE), in one dimension, noised to x + sigma eps.
Expectations over z and eps are Gauss-Hermite sums: exact, not sampled.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import f_divergence as fd
from distill_jax.losses import scores

MEAN, VARIANCE = 0.4, 0.25
GENERATORS = [(-0.3, 0.8), (1.0, 0.3), (0.4, 0.5)]
EVERY = list(itertools.product(GENERATORS, [0.2, 1.0]))


@pytest.fixture(autouse=True)
def in_float64():
  with jax.enable_x64(True):
    yield


def nodes(n):
  """z, eps and their weights: [n * n, 1] each, exact for polynomials up to degree 2 n - 1."""
  x, w = np.polynomial.hermite_e.hermegauss(n)
  z, eps = (a.reshape(-1, 1) for a in np.meshgrid(x, x))
  return z, eps, np.outer(w, w).reshape(-1, 1) / w.sum() ** 2


def denoise(x, mean, variance, sigma):
  return (variance * x + sigma**2 * mean) / (variance + sigma**2)


def noise(x, mean, variance, sigma):
  """E[eps | x]."""
  return sigma * (x - mean) / (variance + sigma**2)


def expected(loss, sigma, n=8):
  """theta -> E loss(x, x_t), and its gradient; the networks are inside `loss`."""
  z, eps, w = nodes(n)

  def total(theta):
    x = theta[0] + theta[1] * z
    return jnp.sum(w * loss(x, x + sigma * eps))

  return jax.value_and_grad(total)


def matching_gradient(theta, sigma, loss):
  """The gradient of E loss(x, real, fake) with an exact fake score."""
  fake = theta[0], theta[1] ** 2

  def of_networks(x, x_t):
    return loss(x, denoise(x_t, MEAN, VARIANCE, sigma), denoise(x_t, *fake, sigma))

  return expected(of_networks, sigma)(jnp.array(theta))[1]


def reverse_kl(theta, sigma):
  """KL(N(m, s^2 + sigma^2) || N(MEAN, VARIANCE + sigma^2))."""
  q, p = theta[1] ** 2 + sigma**2, VARIANCE + sigma**2
  return (jnp.log(p / q) + (q + (theta[0] - MEAN) ** 2) / p - 1) / 2


@pytest.mark.parametrize(("theta", "sigma"), EVERY)
def test_dmd_follows_the_gradient_of_reverse_kl(theta, sigma):
  want = jax.grad(reverse_kl)(jnp.array(theta), sigma)
  weight = sigma**-2  # from images to scores

  def dmd(x, real, fake):
    return scores.distribution_matching(x, real, fake, weight=weight, normalize=False)

  def diff_instruct(x, real, fake):
    return scores.diff_instruct(x, real, fake, weight=weight)

  for loss in (dmd, diff_instruct):
    np.testing.assert_allclose(matching_gradient(theta, sigma, loss), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("theta", "sigma"), EVERY)
def test_vsd_follows_the_gradient_of_reverse_kl(theta, sigma):
  def vsd(x, x_t):
    teacher = noise(x_t, MEAN, VARIANCE, sigma)
    fake = noise(x_t, theta[0], theta[1] ** 2, sigma)
    return scores.noise_difference(x, teacher, fake, weight=1 / sigma)

  want = jax.grad(reverse_kl)(jnp.array(theta), sigma)
  np.testing.assert_allclose(expected(vsd, sigma)(jnp.array(theta))[1], want, rtol=1e-9, atol=1e-12)


def sid(theta, sigma, alpha):
  """E[SiD's loss] without its normaliser, the fake score exact at theta and then frozen."""
  fake = theta[0], theta[1] ** 2

  def unnormalised(x, x_t):
    real = denoise(x_t, MEAN, VARIANCE, sigma)
    loss = scores.sid(x, real, denoise(x_t, *fake, sigma), alpha=alpha)
    return loss * scores.teacher_distance(x, real)

  return expected(unnormalised, sigma)(jnp.array(theta))


def fisher(theta, sigma):
  """E |real - fake|^2 with the fake score exact at every theta, and its gradient."""
  z, eps, w = nodes(8)

  def total(theta):
    x_t = theta[0] + theta[1] * z + sigma * eps
    real = denoise(x_t, MEAN, VARIANCE, sigma)
    return jnp.sum(w * jnp.square(real - denoise(x_t, theta[0], theta[1] ** 2, sigma)))

  return jax.value_and_grad(total)(jnp.array(theta))


@pytest.mark.parametrize(("theta", "sigma"), EVERY)
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_sid_estimates_the_fisher_divergence_times_one_minus_alpha(theta, sigma, alpha):
  value, _ = sid(theta, sigma, alpha)
  np.testing.assert_allclose(value, (1 - alpha) * fisher(theta, sigma)[0], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("theta", "sigma"), EVERY)
def test_sid_at_one_half_has_half_the_gradient_of_the_fisher_divergence(theta, sigma):
  _, got = sid(theta, sigma, 0.5)
  np.testing.assert_allclose(got, fisher(theta, sigma)[1] / 2, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
@pytest.mark.parametrize("sigma", [0.2, 1.0])
def test_sid_gradient_of_the_mean(sigma, alpha):
  """(1 - a) (MEAN - m) ((2 alpha - 1) (b - a) - (1 - a)), a and b what the teacher and the fake
  score keep of x_t. Descent moves away from MEAN once (2 alpha - 1) (b - a) > 1 - a."""
  m, s = -0.3, 1.5
  a, b = VARIANCE / (VARIANCE + sigma**2), s**2 / (s**2 + sigma**2)
  want = (1 - a) * (MEAN - m) * ((2 * alpha - 1) * (b - a) - (1 - a))
  got = sid((m, s), sigma, alpha)[1][0]
  np.testing.assert_allclose(got, want, rtol=1e-9)
  assert (got > 0) == (alpha == 1.2 and sigma == 0.2)
  assert got != 0  # although at alpha = 1 the value is 0


GRID = np.linspace(-12.0, 12.0, 4001)
STEP = GRID[1] - GRID[0]


def density(mean, variance):
  return jnp.exp(-((GRID - mean) ** 2) / (2 * variance)) / jnp.sqrt(2 * np.pi * variance)


@pytest.mark.parametrize("divergence", fd.DIVERGENCES)
def test_f_divergence_weight_is_the_second_derivative(divergence):
  r = jnp.array([0.05, 0.3, 1.0, 2.5, 9.0])
  second = jax.vmap(jax.grad(jax.grad(lambda r: fd.f(r, divergence=divergence))))(r)
  np.testing.assert_allclose(fd.weight(r, divergence=divergence), r**2 * second, rtol=1e-9)


@pytest.mark.parametrize("divergence", fd.DIVERGENCES)
def test_weighted_matching_follows_the_gradient_of_the_f_divergence(divergence):
  """E_q[h(p / q) (score of q - score of p)] moves the generator down D_f(p || q)."""
  theta, sigma = jnp.array([0.1, 0.45]), 1.0
  p_variance, q_variance = VARIANCE + sigma**2, theta[1] ** 2 + sigma**2

  def d_f(theta):
    q = density(theta[0], theta[1] ** 2 + sigma**2)
    return jnp.sum(q * fd.f(density(MEAN, p_variance) / q, divergence=divergence)) * STEP

  def log_density(x, mean, variance):
    return -((x - mean) ** 2) / (2 * variance) - jnp.log(variance) / 2

  def loss(x, x_t):
    logit = log_density(x_t, MEAN, p_variance) - log_density(x_t, theta[0], q_variance)
    ratio = fd.density_ratio(logit, lower=0.0, upper=jnp.inf)
    weight = fd.weight(ratio, divergence=divergence) / sigma**2
    real, fake = denoise(x_t, MEAN, VARIANCE, sigma), denoise(x_t, theta[0], theta[1] ** 2, sigma)
    return scores.distribution_matching(x, real, fake, weight=weight, normalize=False)

  _, got = expected(loss, sigma, n=40)(theta)
  np.testing.assert_allclose(got, jax.grad(d_f)(theta), rtol=1e-6)


@pytest.mark.parametrize("sigma", [0.2, 1.0])
def test_sds_pulls_a_point_to_the_mode(sigma):
  """E[predicted noise - noise] = sigma (x - MEAN) / (VARIANCE + sigma^2)."""
  weight = scores.noise_weight(1.0, jnp.float64(sigma))
  for x in (-2.0, MEAN, 0.7):
    got = entropic_gradient((x, 0.0), sigma, 0.0, weight)[0]
    want = sigma**3 * (x - MEAN) / (VARIANCE + sigma**2)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-14)


def entropic_gradient(theta, sigma, entropy, weight=1.0):
  """ESD's: the particle's own score and the generator's exact one; 0 is SDS, 1 VSD on all."""

  def loss(x, x_t):
    own = (x_t - x) / sigma
    fake = scores.entropic(own, noise(x_t, theta[0], theta[1] ** 2, sigma), entropy=entropy)
    return scores.noise_difference(x, noise(x_t, MEAN, VARIANCE, sigma), fake, weight=weight)

  return expected(loss, sigma)(jnp.asarray(theta))[1]


@pytest.mark.parametrize("entropy", [0.0, 0.7, 1.0])
def test_the_share_of_entropy_sets_the_spread_of_what_is_learnt(entropy):
  """Descent ends at s^2 = max(0, entropy (VARIANCE + sigma^2) - sigma^2): SDS at a point on the
  mode, VSD at the variance of the data, ESD between."""
  sigma = 0.3

  @jax.jit
  def descend(theta):
    return jax.lax.fori_loop(
      0, 300, lambda _, t: t - 0.5 * entropic_gradient(t, sigma, entropy), theta
    )

  mean, std = descend(jnp.array([2.0, 1.0]))
  want = max(0.0, entropy * (VARIANCE + sigma**2) - sigma**2)
  np.testing.assert_allclose([mean, std**2], [MEAN, want], atol=1e-6)


def test_dmd_recovers_the_data():
  @jax.jit
  def descend(theta):
    def step(_, theta):
      def loss(x, real, fake):
        return scores.distribution_matching(x, real, fake, normalize=False)

      return theta - 1.0 * matching_gradient(theta, 0.5, loss)

    return jax.lax.fori_loop(0, 200, step, theta)

  mean, std = descend(jnp.array([-1.0, 1.5]))
  np.testing.assert_allclose([mean, std**2], [MEAN, VARIANCE], rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0])
def test_adversarial_score_distillation_is_scaled_vsd(gamma):
  """The critic ends at (fake + gamma teacher) / (1 + gamma), for VSD's gradient / (1 + gamma)."""
  theta, sigma = jnp.array([-0.3, 0.8]), 0.6
  z, eps, w = nodes(8)
  x = theta[0] + theta[1] * z
  x_t = x + sigma * eps
  teacher = noise(x_t, MEAN, VARIANCE, sigma)
  fake = noise(x_t, theta[0], theta[1] ** 2, sigma)

  def critic(line):
    psi = line[0] + line[1] * x_t
    return jnp.sum(w * scores.adversarial_score(psi, eps, teacher, gamma=gamma))

  best = (fake + gamma * teacher) / (1 + gamma)
  slope = (best[1, 0] - best[0, 0]) / (x_t[1, 0] - x_t[0, 0])
  line = jnp.array([best[0, 0] - slope * x_t[0, 0], slope])
  np.testing.assert_allclose(jax.grad(critic)(line), 0, atol=1e-12)

  def gradient(other):
    return jax.grad(lambda x: scores.noise_difference(x, teacher, other, weight=1.0).sum())(x)

  np.testing.assert_allclose(gradient(best), gradient(fake) / (1 + gamma), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_decoupled_terms_are_the_guided_gradient(scale):
  """Matching plus guidance is DMD with a guided teacher, a Gaussian cut by its condition."""
  theta, sigma = (-0.3, 0.8), 0.5

  def networks(x_t):
    cond, uncond = denoise(x_t, MEAN, VARIANCE, sigma), denoise(x_t, 0.0, 1.0, sigma)
    return cond, uncond, denoise(x_t, theta[0], theta[1] ** 2, sigma)

  def guided(x, x_t):
    cond, uncond, fake = networks(x_t)
    real = uncond + scale * (cond - uncond)
    return scores.distribution_matching(x, real, fake, normalize=False)

  def split(x, x_t):
    cond, uncond, fake = networks(x_t)
    matching = scores.distribution_matching(x, cond, fake, normalize=False)
    return matching + scores.guidance_augmentation(x, cond, uncond, scale=scale)

  got, want = (expected(loss, sigma)(jnp.array(theta))[1] for loss in (split, guided))
  np.testing.assert_allclose(got, want, rtol=1e-9)
