"""The real training set on the devices, and draws from it inside the step.

Methods of dataset distillation compare a few synthetic images with batches of real ones, often a
batch of each class. The set is in `frozen`, its rows ordered by class (data/image_set.py), so that
a draw is a gather and a resumed run draws the same images.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.mesh import split_batch


class Real(NamedTuple):
  x: jax.Array  # float32 [N, H, W, C], preprocessed, ordered by class
  label: jax.Array  # int32 [N]
  first: jax.Array  # int32 [classes], the row of a class's first image
  size: jax.Array  # int32 [classes], its number of images


def of_classes(key: jax.Array, real: Real, n: int) -> tuple[jax.Array, jax.Array]:
  """n images of every class, with repetition: [classes n, H, W, C] and labels, class after class.

  The authors' loops draw without repetition within a batch; of thousands of images that is the
  same but for a few.
  """
  classes = len(real.first)
  drawn = jax.random.randint(key, (classes, n), 0, real.size[:, None])
  rows = (real.first[:, None] + drawn).reshape(-1)
  return split_batch(real.x[rows]), real.label[rows]


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
