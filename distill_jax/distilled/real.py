"""The real training set on the devices, and draws from it inside the step.

Methods of dataset distillation compare a few synthetic images with batches of real ones, often a
batch of each class. The set is in `frozen`, its rows ordered by class (data/image_set.py), so that
a draw is a gather and a resumed run draws the same images.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.mesh import batch_devices, split_batch

CHUNK = 64


class Real(NamedTuple):
  x: jax.Array  # float32 [N, H, W, C], preprocessed, ordered by class
  label: jax.Array  # int32 [N]
  first: jax.Array  # int32 [classes], the row of a class's first image
  size: jax.Array  # int32 [classes], its number of images


def of_classes(key: jax.Array, real: Real, n: int) -> tuple[jax.Array, jax.Array]:
  """n images of every class: [classes n, H, W, C] and labels, class after class."""
  rows = rows_of_classes(key, real, n)
  return split_batch(real.x[rows]), real.label[rows]


def rows_of_classes(key: jax.Array, real: Real, n: int) -> jax.Array:
  """Rows [classes n] of n images of every class, with repetition, class after class.

  The authors' loops draw without repetition within a batch; of thousands of images that is the
  same but for a few.
  """
  drawn = jax.random.randint(key, (len(real.first), n), 0, real.size[:, None])
  return (real.first[:, None] + drawn).reshape(-1)


def in_chunks(function: Callable[[jax.Array], jax.Array], real: Real, rows: jax.Array) -> jax.Array:
  """function(images [B, H, W, C]) -> [B, ...] of the rows' images [N], at most `CHUNK` of them at a
  time on each device: what a network makes of so few stays in the caches of a CPU, and is no more
  than a chip likes to hold."""
  most = CHUNK * batch_devices()
  count = next(c for c in range(-(-len(rows) // most), len(rows) + 1) if len(rows) % c == 0)
  parts = jax.lax.map(lambda rows: function(split_batch(real.x[rows])), rows.reshape(count, -1))
  return parts.reshape(len(rows), *parts.shape[2:])


def at_random(key: jax.Array, real: Real, n: int) -> tuple[jax.Array, jax.Array]:
  """n images of any class, with repetition, and their labels."""
  rows = jax.random.randint(key, (n,), 0, len(real.x))
  return split_batch(real.x[rows]), real.label[rows]


def rows_of_each_class(
  real: Real, choose: Callable[[jax.Array, jax.Array], jax.Array], key: jax.Array
) -> jax.Array:
  """Rows that choose(inside bool [N], key) returns for each class, class after class."""
  classes = len(real.first)
  keys = jax.random.split(key, classes)
  rows = jax.lax.map(lambda of: choose(real.label == of[0], of[1]), (jnp.arange(classes), keys))
  return rows.reshape(-1)
