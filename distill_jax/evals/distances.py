"""Distances between two sets of samples, or features of them, [N, D] and [M, D]."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

HIGHEST = jax.lax.Precision.HIGHEST


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean [D] and unbiased covariance [D, D] of x [N, D]."""
  mean = jnp.mean(x, axis=0)
  return mean, jnp.matmul((x - mean).T, x - mean, precision=HIGHEST) / (len(x) - 1)


def frechet_distance(
  mean1: jax.Array, cov1: jax.Array, mean2: jax.Array, cov2: jax.Array
) -> jax.Array:
  """Squared 2-Wasserstein distance between Gaussians; of Inception features, FID.

  |mean1 - mean2|^2 + tr(cov1 + cov2 - 2 (cov1^(1/2) cov2 cov1^(1/2))^(1/2)), the last trace the
  nuclear norm of cov1^(1/2) cov2^(1/2): symmetric eigenproblems only, so singular covariances are
  no exception. Use float64 for many features.

  Dowson and Landau, The Frechet distance between multivariate normal distributions (Journal of
  Multivariate Analysis, 1982); Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge
  to a Local Nash Equilibrium (arXiv:1706.08500), eq. 6.

  Args:
    mean1, mean2: [D].
    cov1, cov2: [D, D] covariances, positive semi-definite up to rounding.

  Returns:
    A scalar, 0 up to rounding for equal arguments.
  """
  cross = jnp.matmul(_root(cov1).T, _root(cov2), precision=HIGHEST)
  nuclear = jnp.sum(jnp.linalg.svd(cross, compute_uv=False))
  return jnp.sum(jnp.square(mean1 - mean2)) + jnp.trace(cov1) + jnp.trace(cov2) - 2 * nuclear


def gaussian_w2(mean1: jax.Array, cov1: jax.Array, mean2: jax.Array, cov2: jax.Array) -> jax.Array:
  """The 2-Wasserstein distance between two Gaussians, sqrt(frechet_distance)."""
  return jnp.sqrt(jnp.maximum(frechet_distance(mean1, cov1, mean2, cov2), 0))


def gaussian_kl(mean1: jax.Array, cov1: jax.Array, mean2: jax.Array, cov2: jax.Array) -> jax.Array:
  """KL(N(mean1, cov1) || N(mean2, cov2)) in nats.

  (tr(cov2^-1 cov1) + (mean2 - mean1)^T cov2^-1 (mean2 - mean1) - D + log det cov2 / det cov1) / 2.
  """
  d = len(mean1)
  ratio = jnp.linalg.solve(cov2, cov1)
  shift = mean2 - mean1
  square = jnp.dot(shift, jnp.linalg.solve(cov2, shift[:, None])[:, 0], precision=HIGHEST)
  return (jnp.trace(ratio) + square - d - jnp.linalg.slogdet(ratio)[1]) / 2


def kid(
  key: jax.Array, x: jax.Array, y: jax.Array, *, subsets: int = 100, size: int = 1000
) -> jax.Array:
  """Kernel distance: `kid_of_subsets` over random subsets without repetition.

  Binkowski et al., Demystifying MMD GANs (arXiv:1801.01401), section 4.

  Args:
    key: for the subsets.
    x, y: features [N, D] and [M, D].
    subsets: how many.
    size: examples of each, at most min(N, M).
  """
  size = min(size, len(x), len(y))

  def draw(key, points):
    return points[jax.random.permutation(key, len(points))[:size]]

  def one(key):
    x_key, y_key = jax.random.split(key)
    return kid_of_subsets(draw(x_key, x)[None], draw(y_key, y)[None])

  return jnp.mean(jax.lax.map(one, jax.random.split(key, subsets)))


def kid_of_subsets(x: jax.Array, y: jax.Array) -> jax.Array:
  """Mean over subsets of the unbiased squared MMD with kernel (x . y / D + 1)^3.

  sum_{i != j} (k(x_i, x_j) + k(y_i, y_j)) / (m (m - 1)) - 2 sum_ij k(x_i, y_j) / m^2; it may be
  negative.

  Args:
    x, y: subsets [S, m, D] each, m at least 2.

  Returns:
    A scalar.
  """
  m, d = x.shape[1:]
  if m < 2:
    raise ValueError(f"a subset needs two examples or more, got {m}")

  def one(pair):
    x, y = pair
    xx, yy, xy = ((jnp.matmul(a, b.T, precision=HIGHEST) / d + 1) ** 3 for a, b in _pairs(x, y))
    within = jnp.sum(xx) - jnp.trace(xx) + jnp.sum(yy) - jnp.trace(yy)
    return within / (m * (m - 1)) - 2 * jnp.mean(xy)

  return jnp.mean(jax.lax.map(one, (x, y)))


def mmd(x: jax.Array, y: jax.Array, *, bandwidth: float = 1.0) -> jax.Array:
  """Squared MMD with kernel exp(-|x - y|^2 / (2 bandwidth^2)): mean k_xx + mean k_yy - 2 mean k_xy.

  Biased: the diagonals count, so it is never negative beyond rounding. Between N(m, v1 I) and N(m +
  delta, v2 I), E k_xy = (b^2 / s)^(D/2) exp(-|delta|^2 / (2 s)), s = b^2 + v1 + v2.

  Gretton et al., A Kernel Two-Sample Test (JMLR 2012), eq. 5, is its root.
  """
  xx, yy, xy = (jnp.mean(jnp.exp(-_squares(a, b) / (2 * bandwidth**2))) for a, b in _pairs(x, y))
  return xx + yy - 2 * xy


def cmmd(x: jax.Array, y: jax.Array) -> jax.Array:
  """1000 times `mmd` at bandwidth 10, meant for CLIP embeddings.

  Jayasumana et al., Rethinking FID: Towards a Better Evaluation Metric for Image Generation
  (arXiv:2401.09603).
  """
  return 1000 * mmd(x, y, bandwidth=10.0)


def energy_distance(x: jax.Array, y: jax.Array) -> jax.Array:
  """2 mean |x - y| - mean |x - x'| - mean |y - y'|, diagonals included: not negative.

  Szekely and Rizzo, Energy statistics (Journal of Statistical Planning and Inference, 2013).
  """
  xx, yy, xy = (jnp.mean(pairwise_distances(a, b)) for a, b in _pairs(x, y))
  return 2 * xy - xx - yy


def wasserstein_1d(x: jax.Array, y: jax.Array, *, p: float = 2.0) -> jax.Array:
  """W_p^p between points on a line, exactly: the integral of |x quantile - y quantile|^p.

  Args:
    x, y: [N, ...] and [M, ...], equal weights; each trailing index is a line of its own.
    p: at least 1.

  Returns:
    [...], the p-th power of the distance.
  """
  n, m = len(x), len(y)
  ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # quantile n m
  widths = np.diff(ends, prepend=0)
  gaps = jnp.sort(x, axis=0)[(ends - 1) // m] - jnp.sort(y, axis=0)[(ends - 1) // n]
  return jnp.tensordot(jnp.asarray(widths / (n * m), gaps.dtype), jnp.abs(gaps) ** p, axes=1)


def sliced_wasserstein(
  x: jax.Array, y: jax.Array, directions: jax.Array, *, p: float = 2.0
) -> jax.Array:
  """(mean over directions of W_p^p of the projections)^(1/p).

  Bonneel et al., Sliced and Radon Wasserstein Barycenters of Measures (Journal of Mathematical
  Imaging and Vision, 2015).

  Args:
    x, y: [N, D] and [M, D], N and M may differ.
    directions: [D, L] unit vectors in columns: see `random_directions`.
    p: at least 1.
  """
  x, y = (jnp.matmul(points, directions, precision=HIGHEST) for points in (x, y))
  return jnp.mean(wasserstein_1d(x, y, p=p)) ** (1 / p)


def random_directions(key: jax.Array, dimensions: int, n: int) -> jax.Array:
  """n uniform unit vectors in columns: [dimensions, n]."""
  z = jax.random.normal(key, (dimensions, n))
  return z / jnp.linalg.norm(z, axis=0)


class Neighbours(NamedTuple):
  """Each a scalar: shares in [0, 1], but density may pass 1."""

  precision: jax.Array  # generated points inside the real manifold
  recall: jax.Array  # real points inside the generated manifold
  density: jax.Array  # real balls that a generated point is in, over k
  coverage: jax.Array  # real balls with a generated point inside


def nearest_neighbours(real: jax.Array, generated: jax.Array, *, k: int = 5) -> Neighbours:
  """Precision, recall, density and coverage from balls that reach each point's k-th neighbour.

  The k-th neighbour leaves out the point itself; a point is inside where its distance is smaller
  than the radius, not equal.

  Kynkaanniemi et al., Improved Precision and Recall Metric for Assessing Generative Models
  (arXiv:1904.06991); Naeem et al., Reliable Fidelity and Diversity Metrics for Generative Models
  (arXiv:2002.09797).

  Args:
    real, generated: [N, D] and [M, D], both of more than k points.
    k: at least 1.
  """
  if not 1 <= k < min(len(real), len(generated)):
    raise ValueError(f"k is {k}, the sets have {len(real)} and {len(generated)} points")

  def radii(points):
    return jnp.sort(pairwise_distances(points, points), axis=-1)[:, k]

  distances, real_radii = pairwise_distances(real, generated), radii(real)
  inside_real = distances < real_radii[:, None]
  return Neighbours(
    precision=jnp.mean(jnp.any(inside_real, axis=0)),
    recall=jnp.mean(jnp.any(distances < radii(generated), axis=1)),
    density=jnp.mean(jnp.sum(inside_real, axis=0)) / k,
    coverage=jnp.mean(jnp.min(distances, axis=1) < real_radii),
  )


class Modes(NamedTuple):
  found: jax.Array  # modes with one good sample or more
  quality: jax.Array  # share of good samples
  shares: jax.Array  # [K], of the good samples by mode: sums to 1, or all 0


def mode_coverage(
  x: jax.Array, means: jax.Array, stds: jax.Array | float, *, within: float = 3.0
) -> Modes:
  """Which modes of a mixture the samples reach: good is within `within` stds of the nearest mean.

  Srivastava et al., VEEGAN: Reducing Mode Collapse in GANs using Implicit Variational Learning
  (arXiv:1705.07761), section 5.1.

  Args:
    x: samples [N, D].
    means: [K, D].
    stds: [K] or one number, of each mode along a coordinate.
    within: radius in stds, of the Euclidean distance.
  """
  distances = pairwise_distances(x, means)
  nearest = jnp.argmin(distances, axis=-1)
  stds = jnp.broadcast_to(stds, len(means))
  good = jnp.min(distances, axis=-1) <= within * stds[nearest]
  counts = jnp.zeros(len(means), x.dtype).at[nearest].add(good)
  return Modes(jnp.sum(counts > 0), jnp.mean(good), counts / jnp.maximum(jnp.sum(counts), 1))


def pairwise_distances(x: jax.Array, y: jax.Array) -> jax.Array:
  """|x_i - y_j| from differences, row by row, so equal points are at 0: [N, M]."""
  return jnp.sqrt(_squares(x, y))


def _squares(x, y):
  return jax.lax.map(lambda point: jnp.sum(jnp.square(point - y), axis=-1), x)


def _pairs(x, y):
  return (x, x), (y, y), (x, y)


def _root(cov):
  """R with R R^T = cov."""
  values, vectors = jnp.linalg.eigh(cov)
  return vectors * jnp.sqrt(jnp.maximum(values, 0))
