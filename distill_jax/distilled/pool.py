"""A pool of networks that are trained on the distilled set while it is learned: networks of many
ages at once, in memory of a few.

Each step draws one of them. Only that one is trained, and drawn anew once it had its updates. The
pool is a part of the state: dict(params, opt, age), each array with a first axis of networks.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Tree = Any


def drawing(
  init: Callable[[jax.Array], Tree], tx: optax.GradientTransformation
) -> Callable[[jax.Array], Tree]:
  """key -> a network of age 0, dict(params, opt, age), from key -> params and its optimiser."""

  def draw(key):
    params = init(key)
    return dict(params=params, opt=tx.init(params), age=jnp.int32(0))

  return draw


def start(draw: Callable[[jax.Array], Tree], key: jax.Array, size: int) -> Tree:
  """A pool of `size` networks of age 0."""
  return jax.vmap(draw)(jax.random.split(key, size))


def take(pool: Tree, i: jax.Array) -> Tree:
  """Network i."""
  return jax.tree.map(lambda x: x[i], pool)


def update(
  pool: Tree,
  i: jax.Array,
  loss: Callable[[Tree], jax.Array],
  tx: optax.GradientTransformation,
  draw: Callable[[jax.Array], Tree],
  key: jax.Array,
  *,
  most: int,
  steps: int | jax.Array = 1,
) -> Tree:
  """The pool after `steps` updates of network i on a loss of its parameters; of age `most`, drawn
  anew. The others keep their bits."""

  def descend(_, network):
    gradient = jax.grad(loss)(network["params"])
    updates, opt = tx.update(gradient, network["opt"], network["params"])
    params = optax.apply_updates(network["params"], updates)
    return dict(params=params, opt=opt, age=network["age"] + 1)

  network = jax.lax.fori_loop(0, steps, descend, take(pool, i))
  network = jax.lax.cond(network["age"] >= most, lambda: draw(key), lambda: network)
  return jax.tree.map(lambda all, one: all.at[i].set(one), pool, network)
