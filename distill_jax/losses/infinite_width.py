"""Kernels of infinitely wide ReLU networks in closed form: before training (NNGP) and in it (NTK).

Weights are drawn with variance weight_std^2 / (inputs of a unit), biases with bias_std^2, in the
NTK parametrisation (Jacot, Gabriel and Hongler, Neural Tangent Kernel, arXiv:1806.07572). A layer
maps the covariance k and the tangent kernel t of its inputs:

  linear  k' = weight_std^2 k + bias_std^2,        t' = k' + weight_std^2 t
  ReLU    k' = sqrt(kx ky) arc_cosine_1(cos) / 2,  t' = t arc_cosine_0(cos) / 2,
          cos = k / sqrt(kx ky)

The kernel of a row with itself has an angle of exactly 0, also in float32. Where two different rows
coincide, t has a cusp: the angle's gradient is 0 there. Results are float32, or float64.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Kernels(NamedTuple):
  """Two matrices [N, M], of the outputs' covariance at initialisation and of the gradients."""

  nngp: jax.Array
  ntk: jax.Array


def angle(cosine: jax.Array) -> jax.Array:
  """arccos, with the cosine cut to [-1, 1] and a gradient of 0 at the ends."""
  inside = jnp.abs(cosine) < 1
  ends = jnp.where(cosine > 0, 0.0, jnp.pi)
  return jnp.where(inside, jnp.arccos(jnp.where(inside, cosine, 0.0)), ends)


def arc_cosine_0(cosine: jax.Array) -> jax.Array:
  """(pi - angle) / pi: twice the share of random half-spaces that hold both vectors.

  Cho and Saul, Kernel Methods for Deep Learning (NIPS 2009).
  """
  return 1 - angle(cosine) / jnp.pi


@jax.custom_jvp
def arc_cosine_1(cosine: jax.Array) -> jax.Array:
  """(sin + (pi - angle) cos) / pi, whose derivative is `arc_cosine_0`, without 0/0 at the ends."""
  sine = jnp.sqrt(jnp.maximum(1 - jnp.square(cosine), 0.0))
  return sine / jnp.pi + cosine * arc_cosine_0(cosine)


arc_cosine_1.defjvps(lambda tangent, _, cosine: tangent * arc_cosine_0(cosine))


def fully_connected(
  x: jax.Array,
  y: jax.Array | None = None,
  *,
  depth: int = 1,
  weight_std: float = 2**0.5,
  bias_std: float = 0.1,
) -> Kernels:
  """Kernels of Flatten, `depth` times (Dense, ReLU), Dense.

  The network of the authors' notebook of KIP, there at depth 1. Arora et al., On Exact Computation
  with an Infinitely Wide Neural Net (arXiv:1904.11955).

  Args:
    x: [N, ...]; y: [M, ...], or None for x itself: then the diagonal is exact.
    depth: hidden layers; 0 is a linear model.

  Raises:
    ValueError: rows of different sizes.
  """
  rows, columns, itself = _pair(x, y)
  rows, columns = (a.reshape(len(a), -1) for a in (rows, columns))
  size = rows.shape[1]
  k = jnp.matmul(rows, columns.T, precision="highest") / size
  kx, ky = (jnp.sum(jnp.square(a), axis=1) / size for a in (rows, columns))
  same = jnp.eye(len(rows), dtype=bool) if itself else jnp.zeros(k.shape, bool)
  t = jnp.zeros_like(k)
  linear = lambda k: weight_std**2 * k + bias_std**2  # noqa: E731
  for _ in range(depth):
    k, kx, ky = linear(k), linear(kx), linear(ky)
    k, t = _relu(k, k + weight_std**2 * t, kx[:, None], ky[None], same)
    kx, ky = kx / 2, ky / 2
  k = linear(k)
  return Kernels(k, k + weight_std**2 * t)


def convolutional(
  x: jax.Array,
  y: jax.Array | None = None,
  *,
  depth: int = 3,
  pool: bool = True,
  weight_std: float = 2**0.5,
  bias_std: float = 0.1,
) -> Kernels:
  """Kernels of `depth` times (3x3 convolution, ReLU, 2x2 average pooling), Flatten, Dense.

  The convolution pads with zeros and has fan-in 9 C; pooling drops an odd last row or column. The
  covariance holds every pair of positions, N M (H W)^2 numbers; without pooling equal positions are
  enough, N M H W. Nguyen, Novak, Xiao and Lee, Dataset Distillation with Infinitely Wide
  Convolutional Networks (arXiv:2107.13034); Arora et al. (arXiv:1904.11955).

  Args:
    x: [N, H, W, C]; y: [M, H, W, C], or None for x itself: then the diagonal is exact.
    depth: convolutions.
    pool: False leaves the pooling out.

  Raises:
    ValueError: images of different sizes, or too small for the pooling.
  """
  rows, columns, itself = _pair(x, y)
  if pool and min(x.shape[1:3]) < 2**depth:
    raise ValueError(f"images of {x.shape[1:3]} pixels cannot be halved {depth} times")
  shared = "nhwc,mhwc->nmhw" if not pool else "nhwc,mijc->nmhwij"
  own = "nhwc,nhwc->nhw" if not pool else "nhwc,nijc->nhwij"
  channels = x.shape[-1]
  k = jnp.einsum(shared, rows, columns, precision="highest") / channels
  kx, ky = (jnp.einsum(own, a, a, precision="highest") / channels for a in (rows, columns))
  t = jnp.zeros_like(k)
  for _ in range(depth):
    filtered = lambda k: weight_std**2 * _windows(k, pool) + bias_std**2  # noqa: E731
    t = filtered(k) + weight_std**2 * _windows(t, pool)
    k, kx, ky = filtered(k), filtered(kx), filtered(ky)
    vx, vy = (_equal_positions(own) if pool else own for own in (kx, ky))
    rows_v, columns_v = _variances(vx, vy, pool)
    k, t = _relu(k, t, rows_v, columns_v, _same(k, itself, pool))
    if pool:
      kx, ky = (
        _relu(own, own, v[:, :, :, None, None], v[:, None, None], _same(own, False, pool))[0]
        for own, v in ((kx, vx), (ky, vy))
      )
      k, t, kx, ky = (_halved(_halved(a, -4), -2) for a in (k, t, kx, ky))
    else:
      kx, ky = kx / 2, ky / 2
  k, t = (jnp.mean(_equal_positions(a) if pool else a, axis=(-2, -1)) for a in (k, t))
  k = weight_std**2 * k + bias_std**2
  return Kernels(k, k + weight_std**2 * t)


def _pair(x: jax.Array, y: jax.Array | None) -> tuple[jax.Array, jax.Array, bool]:
  if y is not None and x.shape[1:] != y.shape[1:]:
    raise ValueError(f"rows differ in size: {x.shape} and {y.shape}")
  dtype = jnp.promote_types(jnp.result_type(x, x if y is None else y), jnp.float32)
  x = x.astype(dtype)
  return x, x if y is None else y.astype(dtype), y is None


def _relu(k, t, kx, ky, same):
  """A ReLU layer; `same` marks entries of a unit with itself, whose cosine is 1."""
  product = kx * ky
  scale = jnp.sqrt(jnp.where(product > 0, product, 1.0))
  cosine = jnp.where(same, 1.0, k / scale)
  return jnp.where(product > 0, scale, 0.0) * arc_cosine_1(cosine) / 2, t * arc_cosine_0(cosine) / 2


def _variances(vx, vy, pool):
  """[N, H, W] and [M, H, W], shaped to multiply the covariance of both."""
  if not pool:
    return vx[:, None], vy[None]
  return vx[:, None, :, :, None, None], vy[None, :, None, None]


def _same(k, itself, pool):
  """Entries of a pixel with itself: of equal images, and of equal positions where both appear."""
  batch = k.shape[:-4] if pool else k.shape[:-2]
  same = jnp.ones((), bool)
  if len(batch) == 2:
    same = jnp.eye(batch[0], dtype=bool) if itself else jnp.zeros(batch, bool)
  same = same.reshape(same.shape + (1,) * (k.ndim - len(batch)))
  if pool:
    h, w = k.shape[-2:]
    same = same & jnp.eye(h * w, dtype=bool).reshape(h, w, h, w)
  return jnp.broadcast_to(same, k.shape)


def _windows(k, pool):
  """The mean of k over the nine offsets of a 3x3 filter, the same for both positions; zeros
  outside.
  """
  spatial = 4 if pool else 2
  h, w = k.shape[-2:]
  padded = jnp.pad(k, [(0, 0)] * (k.ndim - spatial) + [(1, 1)] * spatial)
  total = jnp.zeros_like(k)
  for i in range(3):
    for j in range(3):
      window = (slice(i, i + h), slice(j, j + w)) * (spatial // 2)
      total += padded[(..., *window)]
  return total / 9


def _equal_positions(k):
  """[..., H, W, H, W] -> [..., H, W]."""
  h, w = k.shape[-2:]
  return jnp.diagonal(k.reshape(*k.shape[:-4], h * w, h * w), axis1=-2, axis2=-1).reshape(
    *k.shape[:-4], h, w
  )


def _halved(k, axis):
  """Means over 2x2 blocks of the axes `axis` and `axis` + 1, counted from the end."""
  for a in (k.ndim + axis, k.ndim + axis + 1):
    size = k.shape[a] // 2
    k = jax.lax.slice_in_dim(k, 0, 2 * size, axis=a)
    k = jnp.mean(k.reshape(*k.shape[:a], size, 2, *k.shape[a + 1 :]), axis=a + 1)
  return k
