"""Teachers with exact scores: a Gaussian, a mixture of Gaussians and stored data.

Each is a tuple of arrays whose methods take x = x0 + sigma eps of [B, ...], flattened beyond the
batch, sigma of [B] or one number, and a condition (a dict; "label" int [B] is the one they read).
`Gaussian.denoise` and `GaussianMixture.denoise` are networks: denoise(params, x, sigma, condition).
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Condition = Mapping[str, jax.Array]
EVERYTHING: Condition = {}
HIGHEST = jax.lax.Precision.HIGHEST


class Gaussian(NamedTuple):
  """N(mean, A diag(variances) A^T) with A = axes orthogonal: see `gaussian`."""

  mean: jax.Array  # [D]
  variances: jax.Array  # [D], eigenvalues of the covariance
  axes: jax.Array  # [D, D], eigenvectors in columns

  def denoise(self, x, sigma, condition: Condition = EVERYTHING) -> jax.Array:
    """E[x0 | x] = mean + S (S + sigma^2)^-1 (x - mean), S the covariance: shaped like x."""
    return self._scaled(x, sigma, lambda v, noise: v / (v + noise)) + self._mean(x)

  def score(self, x, sigma, condition: Condition = EVERYTHING) -> jax.Array:
    """grad log p_sigma(x) = -(S + sigma^2)^-1 (x - mean): shaped like x."""
    return self._scaled(x, sigma, lambda v, noise: -1 / (v + noise))

  def log_prob(self, x, sigma=0.0, condition: Condition = EVERYTHING) -> jax.Array:
    """log p_sigma(x), p_sigma = N(mean, S + sigma^2), in nats: [B]."""
    variances = self.variances + _per_example(sigma, x) ** 2
    square = jnp.square(self._coordinates(x)) / variances
    return -jnp.sum(square + jnp.log(2 * np.pi * variances), axis=-1) / 2

  def flow_map(self, x, sigma_from, sigma_to, condition: Condition = EVERYTHING) -> jax.Array:
    """Where the probability-flow ODE takes x from one noise level to another, exactly.

    mean + (S + sigma_to^2)^(1/2) (S + sigma_from^2)^(-1/2) (x - mean), shaped like x.
    """
    to = _per_example(sigma_to, x) ** 2
    return self._scaled(x, sigma_from, lambda v, noise: jnp.sqrt((v + to) / (v + noise))) + (
      self._mean(x)
    )

  def sample(self, key: jax.Array, n: int, condition: Condition = EVERYTHING) -> jax.Array:
    """n draws of x0: [n, D]."""
    z = jax.random.normal(key, (n, *self.mean.shape), self.mean.dtype)
    return self.mean + jnp.matmul(z * jnp.sqrt(self.variances), self.axes.T, precision=HIGHEST)

  def _mean(self, x):
    return self.mean.reshape((1, *x.shape[1:]))

  def _coordinates(self, x):
    centred = x.reshape(len(x), -1) - self.mean
    return jnp.matmul(centred, self.axes, precision=HIGHEST)

  def _scaled(self, x, sigma, scale):
    """x - mean with each eigenvector's coordinate times scale(variance, sigma^2)."""
    noise = _per_example(sigma, x) ** 2
    coordinates = self._coordinates(x) * scale(self.variances, noise)
    return jnp.matmul(coordinates, self.axes.T, precision=HIGHEST).reshape(x.shape)


def gaussian(mean: jax.Array, covariance: jax.Array) -> Gaussian:
  """The Gaussian teacher of a mean [D] and a positive semi-definite covariance [D, D]."""
  variances, axes = jnp.linalg.eigh(covariance)
  return Gaussian(jnp.asarray(mean), jnp.maximum(variances, 0), axes)


class GaussianMixture(NamedTuple):
  """sum_k weights_k N(means_k, stds_k^2 I); a condition on a class keeps that class's components.

  A label y keeps components k with labels_k = y, their weights made to sum to 1; the null label
  max(labels) + 1, or no label, keeps all. A class whose weights are all 0 has no density: nan.
  """

  weights: jax.Array  # [K], in any positive multiple
  means: jax.Array  # [K, ...], the shape of an example
  stds: jax.Array  # [K]; 0 is a point, for sigma > 0 only
  labels: jax.Array  # [K] int, the class of each component

  def denoise(self, x, sigma, condition: Condition = EVERYTHING) -> jax.Array:
    """E[x0 | x] = sum_k r_k (stds_k^2 x + sigma^2 means_k) / (stds_k^2 + sigma^2).

    r_k is the posterior of component k given x at noise sigma.

    Returns:
      Shaped like x.
    """
    noise, posterior = _per_example(sigma, x) ** 2, self.responsibilities(x, sigma, condition)
    kept = posterior * self.stds**2 / (self.stds**2 + noise)
    to_means = posterior * noise / (self.stds**2 + noise)
    return _expand(jnp.sum(kept, axis=-1), x) * x + self._towards_means(to_means, x)

  def score(self, x, sigma, condition: Condition = EVERYTHING) -> jax.Array:
    """grad log p_sigma(x) = sum_k r_k (means_k - x) / (stds_k^2 + sigma^2): shaped like x."""
    noise, posterior = _per_example(sigma, x) ** 2, self.responsibilities(x, sigma, condition)
    pull = posterior / (self.stds**2 + noise)
    return self._towards_means(pull, x) - _expand(jnp.sum(pull, axis=-1), x) * x

  def log_prob(self, x, sigma=0.0, condition: Condition = EVERYTHING) -> jax.Array:
    """log p_sigma(x | condition) in nats: [B]."""
    return jax.nn.logsumexp(self._log_joint(x, sigma, condition), axis=-1)

  def responsibilities(self, x, sigma=0.0, condition: Condition = EVERYTHING) -> jax.Array:
    """The posterior of each component given x: [B, K]."""
    return jax.nn.softmax(self._log_joint(x, sigma, condition), axis=-1)

  def flow_map(
    self, x, sigma_from, sigma_to, condition: Condition = EVERYTHING, *, steps: int = 64
  ) -> jax.Array:
    """Where the probability-flow ODE dx/dsigma = -sigma score takes x, by Runge-Kutta 4.

    The steps are equal in sigma^(1/7), as Karras et al. space them (arXiv:2206.00364, eq. 5).

    Args:
      x: [B, ...] at noise sigma_from.
      sigma_from: [B] or one number.
      sigma_to: [B] or one number; 0 is allowed where no std is 0.
      condition: of the score.
      steps: of Runge-Kutta, four scores each.

    Returns:
      Shaped like x.
    """
    start = jnp.broadcast_to(jnp.asarray(sigma_from, x.dtype), len(x)) ** (1 / 7)
    width = jnp.broadcast_to(jnp.asarray(sigma_to, x.dtype), len(x)) ** (1 / 7) - start

    def slope(u, x):
      root = start + u * width
      sigma = root**7
      return _expand(-7 * root**6 * width * sigma, x) * self.score(x, sigma, condition)

    def step(x, u):
      h = 1 / steps
      a = slope(u, x)
      b = slope(u + h / 2, x + h / 2 * a)
      c = slope(u + h / 2, x + h / 2 * b)
      d = slope(u + h, x + h * c)
      return x + h / 6 * (a + 2 * b + 2 * c + d), None

    return jax.lax.scan(step, x, jnp.arange(steps, dtype=x.dtype) / steps)[0]

  def sample(self, key: jax.Array, n: int, condition: Condition = EVERYTHING) -> jax.Array:
    """n draws of x0, [n, ...]; a label of the condition is [n]."""
    which, noise = jax.random.split(key)
    log_weights = jnp.broadcast_to(self._log_weights(condition), (n, len(self.weights)))
    component = jax.random.categorical(which, log_weights)
    x = self.means[component]
    return x + _expand(self.stds[component], x) * jax.random.normal(noise, x.shape, x.dtype)

  def _log_weights(self, condition):
    """Log weights of the condition's components, -inf for others: [K] or [B, K]."""
    weights = self.weights
    if "label" in condition:
      label = condition["label"][:, None]
      keep = (label == self.labels) | (label == jnp.max(self.labels) + 1)
      weights = jnp.where(keep, weights, 0)
    return jnp.log(weights) - jnp.log(jnp.sum(weights, axis=-1, keepdims=True))

  def _log_joint(self, x, sigma, condition):
    """log (weight_k N(x; means_k, stds_k^2 + sigma^2)): [B, K]."""
    variances = self.stds**2 + _per_example(sigma, x) ** 2
    points, means = x.reshape(len(x), -1), self.means.reshape(len(self.means), -1)
    centre = jnp.mean(means, axis=0)
    points, means = points - centre, means - centre
    square = (
      jnp.sum(points**2, axis=-1, keepdims=True)
      + jnp.sum(means**2, axis=-1)
      - 2 * jnp.matmul(points, means.T, precision=HIGHEST)
    )
    log_normal = -(square / variances + points.shape[-1] * jnp.log(2 * np.pi * variances)) / 2
    return self._log_weights(condition) + log_normal

  def _towards_means(self, weights, x):
    means = self.means.reshape(len(self.means), -1)
    return jnp.matmul(weights, means, precision=HIGHEST).reshape(x.shape)


def empirical(data: jax.Array, labels: jax.Array | None = None) -> GaussianMixture:
  """The teacher that knows the data by heart: equal points of no width.

  denoise(x, sigma) = sum_n softmax_n(-|x - data_n|^2 / (2 sigma^2)) data_n, for sigma > 0.

  Args:
    data: [N, ...] clean examples.
    labels: [N] int classes; none: one class.
  """
  n = len(data)
  labels = jnp.zeros(n, jnp.int32) if labels is None else labels
  return GaussianMixture(jnp.ones(n, data.dtype), data, jnp.zeros(n, data.dtype), labels)


def grid_mixture() -> GaussianMixture:
  """25 equal modes of std 0.1 on {-2, ..., 2}^2, labelled by row: five classes, null label 5.

  Each coordinate has mean 0 and variance 2 + 0.01, so sigma_data = sqrt(2.01) = 1.418.
  """
  rows, columns = np.divmod(np.arange(25), 5)
  means = np.stack([columns - 2, rows - 2], axis=-1).astype(np.float32)
  ones = np.ones(25, np.float32)
  return GaussianMixture(
    jnp.asarray(ones / 25),
    jnp.asarray(means),
    jnp.asarray(ones / 10),
    jnp.asarray(rows, jnp.int32),
  )


def _per_example(sigma, x):
  """sigma as [B, 1], or [1, 1] if it is one number."""
  return jnp.asarray(sigma, x.dtype).reshape(-1, 1)


def _expand(values, x):
  return jnp.reshape(values, (-1,) + (1,) * (x.ndim - 1))
