"""Maximum mean discrepancy between two sets of features.

Gretton et al., A Kernel Two-Sample Test, Journal of Machine Learning Research 13, 2012.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def rbf_kernel(x: jax.Array, y: jax.Array, *, bandwidths: Sequence[float]) -> jax.Array:
  """sum_h exp(-|x_i - y_j|^2 / (2 h^2)): [N, D] and [M, D] to [N, M].

  Distances are taken from differences, so equal rows are at distance 0 exactly.
  """
  square = jnp.sum(jnp.square(x[:, None] - y[None]), axis=-1)
  return sum((jnp.exp(-square / (2 * h**2)) for h in bandwidths), jnp.zeros_like(square))


def rbf_mmd(
  x: jax.Array, y: jax.Array, *, bandwidths: Sequence[float] = (1.0,), unbiased: bool = False
) -> jax.Array:
  """mean k(x, x') + mean k(y, y') - 2 mean k(x, y), k of `rbf_kernel`: the square of the MMD.

  Args:
    x: [N, D], features of samples.
    y: [M, D], features of data. Gradients flow into both.
    bandwidths: h, in the unit of the features.
    unbiased: leave out the pairs of a row with itself; the value may then be negative.

  Returns:
    Scalar.

  Raises:
    ValueError: unbiased with fewer than two rows, or features of different sizes.
  """
  if x.shape[1:] != y.shape[1:]:
    raise ValueError(f"features differ in size: {x.shape} and {y.shape}")
  if unbiased and min(len(x), len(y)) < 2:
    raise ValueError(f"the unbiased estimate needs two rows of each, got {len(x)} and {len(y)}")

  def within(a):
    n, total = len(a), jnp.sum(rbf_kernel(a, a, bandwidths=bandwidths))
    if unbiased:  # k(a, a) is 1 for each bandwidth
      return (total - n * len(bandwidths)) / (n * (n - 1))
    return total / n**2

  return within(x) + within(y) - 2 * jnp.mean(rbf_kernel(x, y, bandwidths=bandwidths))


def linear_mmd(x: jax.Array, y: jax.Array) -> jax.Array:
  """|mean x - mean y|^2 for x [N, D], y [M, D]: the MMD of the linear kernel, squared. Scalar."""
  return jnp.sum(jnp.square(jnp.mean(x, axis=0) - jnp.mean(y, axis=0)))
