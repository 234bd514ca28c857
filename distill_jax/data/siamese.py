"""Differentiable siamese augmentation: the same drawn operation on real and synthetic images.

The operations are pure functions of images [B, H, W, C] and of explicit parameters: a number for
the whole batch, which two batches then share, or [B], one for each image. Gradients flow into the
images.

Zhao and Bilen, Dataset Condensation with Differentiable Siamese Augmentation (arXiv:2102.08259).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

Number = jax.Array | float
OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


class Strength(NamedTuple):
  """How far parameters are drawn from doing nothing; the authors' values."""

  brightness: float = 1.0  # added: from -1/2 to 1/2 of it
  saturation: float = 2.0  # factor: from 0 to it
  contrast: float = 0.5  # factor: from it to 1 more
  crop: float = 0.125  # shift, up to this part of a side
  cutout: float = 0.5  # side of the square, in sides of the image
  flip: float = 0.5  # probability
  scale: float = 1.2  # factor of each axis, from 1 / scale to scale
  rotate: float = 15.0  # degrees, to either side


STRENGTH = Strength()


class Augmentation(NamedTuple):
  """Which operation, int32 scalar, and the parameters of all: numbers, or [B] each."""

  operation: jax.Array  # index into the names it was drawn of
  brightness: jax.Array
  saturation: jax.Array
  contrast: jax.Array
  shift: tuple[jax.Array, jax.Array]  # down, right; whole pixels
  corner: tuple[jax.Array, jax.Array]  # centre of the square; whole pixels
  flip: jax.Array  # bool
  scale: tuple[jax.Array, jax.Array]  # of x, of y
  angle: jax.Array  # radians


def brightness(x: jax.Array, shift: Number) -> jax.Array:
  """x + shift."""
  return x + _expand(shift)


def saturation(x: jax.Array, factor: Number) -> jax.Array:
  """factor (x - m) + m, m the mean of a pixel's channels; grey images stay as they are."""
  mean = jnp.mean(x, axis=-1, keepdims=True)
  return (x - mean) * _expand(factor) + mean


def contrast(x: jax.Array, factor: Number) -> jax.Array:
  """factor (x - m) + m, m the mean of an image."""
  mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
  return (x - mean) * _expand(factor) + mean


def crop(x: jax.Array, down: Number, right: Number) -> jax.Array:
  """out[i, j] = x[i + down, j + right], 0 outside, whole pixels: a crop of the padded image."""

  def move(x, shift, axis):
    source = jnp.arange(x.shape[axis]) + shift
    inside = (source >= 0) & (source < x.shape[axis])
    shape = [-1 if a == axis else 1 for a in range(x.ndim)]
    taken = jnp.take(x, source, axis=axis, mode="clip")
    return jnp.where(inside.reshape(shape), taken, 0.0)

  return _each(lambda x, d, r: move(move(x, d, 0), r, 1), x, down, right)


def cutout(x: jax.Array, row: Number, column: Number, *, size: tuple[int, int]) -> jax.Array:
  """0 in a rectangle of `size` pixels with its middle at (row, column), cut at the borders."""

  def inside(side, middle, length):
    first = _expand(middle)[..., 0] - length // 2
    place = jnp.arange(side)
    return (place >= first) & (place < first + length)  # [1 or B, 1, side]

  rows = jnp.swapaxes(inside(x.shape[1], row, size[0]), 1, 2)
  hole = rows & inside(x.shape[2], column, size[1])
  return jnp.where(hole[..., None], 0.0, x)


def flip(x: jax.Array, flipped: jax.Array | bool) -> jax.Array:
  """Left to right where `flipped`."""
  return jnp.where(_expand(flipped), x[:, :, ::-1], x)


def scale(x: jax.Array, across: Number, down: Number) -> jax.Array:
  """out(u, v) = x(across u, down v), bilinear, 0 outside; u, v from -1 to 1 over the image.

  A factor above 1 shrinks what is seen.
  """
  return _each(lambda x, a, d: _sample(x, lambda u, v: (a * u, d * v)), x, across, down)


def rotate(x: jax.Array, angle: Number) -> jax.Array:
  """out(u, v) = x(u cos - v sin, u sin + v cos) of an angle in radians, as `scale`."""

  def one(x, angle):
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return _sample(x, lambda u, v: (cos * u - sin * v, sin * u + cos * v))

  return _each(one, x, angle)


def draw(
  key: jax.Array,
  shape: tuple[int, int],
  *,
  operations: tuple[str, ...] = OPERATIONS,
  strength: Strength = STRENGTH,
  batch: int | None = None,
) -> Augmentation:
  """One operation, all as likely, and its parameters.

  Args:
    key: randomness; the same key is the same augmentation.
    shape: height and width of the images.
    operations: names out of `OPERATIONS`; digits are seldom flipped.
    strength: ranges.
    batch: draw parameters for each of so many images; None: one for the whole batch (siamese).

  Raises:
    ValueError: no such operation, or none at all.
  """
  _check(operations)
  size = () if batch is None else (batch,)
  keys = jax.random.split(key, 11)

  def uniform(i, low, high):
    return jax.random.uniform(keys[i], size, minval=low, maxval=high)

  def whole(i, low, high):
    return jax.random.randint(keys[i], size, low, high)

  limits = [_pixels(side, strength.crop) for side in shape]
  rest = [side + 1 - _pixels(side, strength.cutout) % 2 for side in shape]
  turn = strength.rotate * jnp.pi / 180
  return Augmentation(
    operation=jax.random.randint(keys[0], (), 0, len(operations)),
    brightness=uniform(1, -strength.brightness / 2, strength.brightness / 2),
    saturation=uniform(2, 0.0, strength.saturation),
    contrast=uniform(3, strength.contrast, strength.contrast + 1),
    shift=(whole(4, -limits[0], limits[0] + 1), whole(5, -limits[1], limits[1] + 1)),
    corner=(whole(6, 0, rest[0]), whole(7, 0, rest[1])),
    flip=uniform(8, 0.0, 1.0) < strength.flip,
    scale=tuple(
      jax.random.uniform(keys[9], (2, *size), minval=1 / strength.scale, maxval=strength.scale)
    ),
    angle=uniform(10, -turn, turn),
  )


def augment(
  x: jax.Array,
  drawn: Augmentation,
  *,
  operations: tuple[str, ...] = OPERATIONS,
  strength: Strength = STRENGTH,
) -> jax.Array:
  """The drawn operation on images [B, H, W, C]; "color" is brightness, saturation, then contrast.

  Args:
    x: images.
    drawn: of `draw`, for this shape, these operations and this strength.
    operations: as in `draw`.
    strength: as in `draw`.

  Raises:
    ValueError: no such operation, or none at all.
  """
  _check(operations)
  size = (_pixels(x.shape[1], strength.cutout), _pixels(x.shape[2], strength.cutout))

  def color(x):
    return contrast(saturation(brightness(x, drawn.brightness), drawn.saturation), drawn.contrast)

  branches = dict(
    color=color,
    crop=lambda x: crop(x, *drawn.shift),
    cutout=lambda x: cutout(x, *drawn.corner, size=size),
    flip=lambda x: flip(x, drawn.flip),
    scale=lambda x: scale(x, *drawn.scale),
    rotate=lambda x: rotate(x, drawn.angle),
  )
  chosen = [lambda x, name=name: branches[name](x).astype(x.dtype) for name in operations]
  return jax.lax.switch(drawn.operation, chosen, x)


def shared(key: jax.Array, x: jax.Array, operations: tuple[str, ...]) -> jax.Array:
  """Images [B, H, W, C] after the operation that the key draws, the same for all; without
  operations, as they are. Two batches and one key make the siamese pair."""
  if not operations:
    return x
  operations = tuple(operations)
  drawn = draw(key, (x.shape[1], x.shape[2]), operations=operations)
  return augment(x, drawn, operations=operations)


def each(key: jax.Array, x: jax.Array, operations: tuple[str, ...]) -> jax.Array:
  """`shared` with parameters for each image: how networks are trained on a set."""
  if not operations:
    return x
  operations = tuple(operations)
  drawn = draw(key, (x.shape[1], x.shape[2]), operations=operations, batch=len(x))
  return augment(x, drawn, operations=operations)


def _check(operations):
  unknown = [name for name in operations if name not in OPERATIONS]
  if unknown or not operations:
    raise ValueError(f"operations {operations}: one or more of {', '.join(OPERATIONS)}")


def _pixels(side: int, part: float) -> int:
  return int(side * part + 0.5)


def _expand(value):
  """[1, 1, 1, 1] or [B, 1, 1, 1]."""
  return jnp.reshape(jnp.asarray(value), (-1, 1, 1, 1))


def _each(function, x, *values):
  """function of single images; values are shared or one for each."""
  arrays = [jnp.asarray(value) for value in values]
  return jax.vmap(function, in_axes=(0, *(0 if a.ndim else None for a in arrays)))(x, *arrays)


def _sample(x, source):
  """The image [H, W, C] at source(u, v) of each pixel's (u, v), bilinear."""
  height, width, _ = x.shape
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  v, u = ((2 * jnp.arange(n, dtype=dtype) + 1) / n - 1 for n in (height, width))
  u, v = jnp.broadcast_arrays(u[None], v[:, None])
  u, v = source(u, v)
  rows, columns = ((v + 1) * height - 1) / 2, ((u + 1) * width - 1) / 2

  def plane(x):
    return map_coordinates(x, [rows, columns], order=1)

  return jax.vmap(plane, in_axes=-1, out_axes=-1)(x)
