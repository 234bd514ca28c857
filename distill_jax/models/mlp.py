"""A residual perceptron for points of few dimensions.

  h = W_in x + e,   h <- h + W_2 silu(W_1 silu(h + e')) for each layer,   F = W_out silu(h)

where e sums up what `embedding.py` makes of time and conditions. Forward mode passes every
operation, so that consistency and flow-map methods can take its derivative in time.
"""

from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.models import embedding

Params = dict[str, Any]


def init(config, shape: tuple[int, ...], key: jax.Array) -> Params:
  """Parameters for points of `shape` (D,); config: width, depth and what embedding.init reads."""
  keys = jax.random.split(key, config.depth + 3)
  width = config.width

  def layer(key):
    first, second = jax.random.split(key)
    return dict(first=dense(first, width, width), second=dense(second, width, width, scale=0.1))

  return dict(
    embed=embedding.init(config, keys[0]),
    inputs=dense(keys[1], shape[-1], width),
    layers=jax.tree.map(lambda *x: jnp.stack(x), *map(layer, keys[3:])),
    outputs=dense(keys[2], width, shape[-1], scale=0.1),
  )


def apply(
  config, params: Params, x: jax.Array, angle: jax.Array, condition: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """F [B, D] and the features [B, 1, width] of the middle layer, from x [B, D] of unit variance."""
  embedded = embedding.apply(config, params["embed"], angle, condition).astype(x.dtype)
  h = affine(params["inputs"], x) + embedded

  def layer(h, p):
    new = h + affine(p["second"], jax.nn.silu(affine(p["first"], jax.nn.silu(h + embedded))))
    return new, new

  h, all_layers = jax.lax.scan(layer, h, params["layers"])
  return affine(params["outputs"], jax.nn.silu(h)), all_layers[config.depth // 2][:, None]


def dense(key: jax.Array, fan_in: int, fan_out: int, *, scale: float = 1.0) -> Params:
  """A matrix of variance scale^2 / fan_in, and a bias of 0."""
  kernel = scale * jax.random.normal(key, (fan_in, fan_out)) / fan_in**0.5
  return dict(kernel=kernel, bias=jnp.zeros(fan_out))


def affine(params: Params, x: jax.Array) -> jax.Array:
  """x W + b over the last axis."""
  return x @ params["kernel"] + params["bias"]
