"""The images that are learned: `state["student"]` of every method of dataset distillation.

images   float32 [classes per_class, H, W, C], preprocessed as the real ones; class after class
rows     int32 [N], in place of images where they are real ones
labels   float32 [classes per_class, classes], only where a method learns them
log_lr   scalar, only where a method learns the learning rate of training on the set
"""

import jax
import jax.numpy as jnp

from distill_jax.distilled.real import Real

STARTS = ("real", "noise")


def start(config, key: jax.Array, real: Real) -> jax.Array:
  """Images to begin with, `config.per_class` of each class: different real ones, or unit noise.

  Raises:
    ValueError: no such start.
  """
  if config.start not in STARTS:
    raise ValueError(f"start: no {config.start!r}: {', '.join(STARTS)}")
  classes, shape = len(real.first), real.x.shape[1:]
  if config.start == "noise":
    return jax.random.normal(key, (classes * config.per_class, *shape))
  return real.x[random_rows(key, real, config.per_class)]


def random_rows(key: jax.Array, real: Real, n: int) -> jax.Array:
  """Rows of n different images of each class [classes n], class after class."""

  def of_class(first, count, key):
    order = jnp.argsort(jax.random.uniform(key, (len(real.x),)))
    inside = (order >= first) & (order < first + count)
    return order[jnp.argsort(~inside)][:n]  # stable: the class's rows, in random order

  keys = jax.random.split(key, len(real.first))
  return jax.lax.map(lambda args: of_class(*args), (real.first, real.size, keys)).reshape(-1)


def hard_labels(classes: int, per_class: int) -> jax.Array:
  """int32 [classes per_class], class after class."""
  return jnp.repeat(jnp.arange(classes, dtype=jnp.int32), per_class)


def parted(images: jax.Array, parts: int) -> jax.Array:
  """Images [N, H, W, C] as parts x parts small ones each, bilinearly at full size:
  [N parts^2, H, W, C], those of an image one after another.

  Raises:
    ValueError: the parts do not divide the image.
  """
  n, height, width, channels = images.shape
  if height % parts or width % parts:
    raise ValueError(f"images of {height} x {width} have no {parts} x {parts} equal parts")
  small = images.reshape(n, parts, height // parts, parts, width // parts, channels)
  small = jnp.swapaxes(small, 2, 3).reshape(-1, height // parts, width // parts, channels)
  return jax.image.resize(small, (len(small), height, width, channels), "bilinear")


def joined(images: jax.Array, parts: int) -> jax.Array:
  """[N parts^2, H, W, C] at 1 / parts of their size beside each other: [N, H, W, C]."""
  n, height, width, channels = images.shape
  shape = height // parts, width // parts, channels
  small = jax.image.resize(images, (n, *shape), "bilinear")
  whole = jnp.swapaxes(small.reshape(-1, parts, parts, *shape), 2, 3)
  return whole.reshape(-1, height, width, channels)


def regression_targets(label: jax.Array, classes: int) -> jax.Array:
  """One-hot less 1 / classes, [N, classes]: the targets of kernel methods."""
  return jax.nn.one_hot(label, classes) - 1 / classes
