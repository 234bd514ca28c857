"""Several copies of a network behind one: each class belongs to one copy.

Of k copies and n classes, copy i answers for the labels y with floor(y k / n) = i. All copies run
on the whole batch and the label picks, so a batch costs k times the network: for a few small
students. A null label goes to the last copy.
"""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from distill_jax import method as method_lib

Params = Any


def init(config, shape: tuple[int, ...], key: jax.Array) -> Params:
  """Parameters of `config.copies` networks `config.copied`, stacked on the first axis."""
  inner = method_lib.load("models", config.copied)
  return jax.vmap(lambda key: inner.init(config, shape, key))(jax.random.split(key, config.copies))


def apply(
  config: ConfigDict,
  params: Params,
  x: jax.Array,
  angle: jax.Array,
  condition: dict[str, jax.Array],
) -> tuple[jax.Array, jax.Array]:
  """F [B, ...] and features [B, N, C] of the copy that each example's label belongs to."""
  inner = method_lib.load("models", config.copied)
  owner = jnp.clip(condition["label"] * config.copies // config.num_classes, 0, config.copies - 1)
  everyone = jax.vmap(lambda p: inner.apply(config, p, x, angle, condition))(params)
  return jax.tree.map(lambda a: a[owner, jnp.arange(len(owner))], everyone)
