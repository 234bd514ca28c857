"""From per-position losses to sums, counts and means."""

import jax
import jax.numpy as jnp


def masked_sum(x: jax.Array, where: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
  """The pair (sum of x where it counts, how many count), the form in which losses and metrics are
  merged.

  Args:
    x: [...].
    where: bool or 0/1 weights that broadcast to x; None counts everything.

  Returns:
    Two scalars, float32 (float64 for float64 x). Entries of weight 0 may hold anything, even NaN.
  """
  x, weight = _weighted(x, where)
  return jnp.sum(x), jnp.sum(weight)


def masked_mean(x: jax.Array, where: jax.Array | None = None, axis=None) -> jax.Array:
  """Mean over `axis` (default: everything) of what counts; 0 where nothing counts.

  Args:
    x: [...].
    where: bool or weights that broadcast to x; None counts everything.
    axis: int or tuple of ints.
  """
  x, weight = _weighted(x, where)
  count = jnp.sum(weight, axis=axis)
  return jnp.sum(x, axis=axis) / jnp.where(count > 0, count, 1)


def _weighted(x: jax.Array, where: jax.Array | None) -> tuple[jax.Array, jax.Array]:
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  if where is None:
    return x, jnp.ones_like(x)
  weight = jnp.broadcast_to(where, x.shape).astype(x.dtype)
  return jnp.where(weight != 0, x, 0) * weight, weight
