"""A diffusion transformer: patches, blocks whose norms are scaled, shifted and gated by time and
conditions, layers stacked and scanned.

DiT-XL/2 is width 1152, depth 28, heads 16, patch 2. Attention is jax.nn.dot_product_attention on
its XLA path, which forward mode can pass.

Peebles and Xie, Scalable Diffusion Models with Transformers (arXiv:2212.09748), adaLN-Zero.
"""

from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.mesh import split_batch
from distill_jax.models import embedding
from distill_jax.models.mlp import affine, dense

Params = dict[str, Any]


def init(config, shape: tuple[int, ...], key: jax.Array) -> Params:
  """Parameters for images of `shape` (H, W, C).

  Args:
    config: width, depth, heads, patch, and what embedding.init reads.
    shape: H and W divisible by the patch.
    key: randomness.

  Raises:
    ValueError: the image is not divisible.
  """
  height, across, channels = shape
  if height % config.patch or across % config.patch:
    raise ValueError(f"patches of {config.patch} do not tile an image of {height} x {across}")
  width, patch = config.width, config.patch**2 * channels
  keys = jax.random.split(key, 4)

  def layer(key):
    qkv, outputs, up, down = jax.random.split(key, 4)
    return dict(
      modulation=dense(key, width, 6 * width, scale=0.0),
      qkv=dense(qkv, width, 3 * width),
      outputs=dense(outputs, width, width),
      up=dense(up, width, 4 * width),
      down=dense(down, 4 * width, width),
    )

  return dict(
    embed=embedding.init(config, keys[0]),
    inputs=dense(keys[1], patch, width),
    layers=jax.vmap(layer)(jax.random.split(keys[2], config.depth)),
    modulation=dense(keys[3], width, 2 * width, scale=0.0),
    outputs=dense(keys[3], width, patch, scale=0.0),
  )


def apply(
  config, params: Params, x: jax.Array, angle: jax.Array, condition: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """F [B, H, W, C] and the features [B, N, width] of the middle layer, from x of unit variance."""
  embedded = embedding.apply(config, params["embed"], angle, condition)
  embedded = jax.nn.silu(embedded).astype(x.dtype)
  b, height, across, channels = x.shape
  p, rows, columns = config.patch, height // config.patch, across // config.patch
  patches = x.reshape(b, rows, p, columns, p, channels).swapaxes(2, 3)
  h = affine(params["inputs"], patches.reshape(b, rows * columns, -1))
  h = h + _positions(rows, columns, config.width).astype(h.dtype)

  def layer(carry, inputs):
    h, features = carry
    number, p = inputs
    h = split_batch(_layer(config, p, split_batch(h), embedded))
    return (h, jnp.where(number == config.depth // 2, h, features)), None

  numbers = jnp.arange(config.depth)
  (h, features), _ = jax.lax.scan(jax.checkpoint(layer), (h, h), (numbers, params["layers"]))
  shift, scale = jnp.split(affine(params["modulation"], embedded)[:, None], 2, axis=-1)
  outputs = affine(params["outputs"], _normalize(h) * (1 + scale) + shift)
  outputs = outputs.reshape(b, rows, columns, p, p, channels).swapaxes(2, 3)
  return outputs.reshape(x.shape), features


def _layer(config, params, h, embedded):
  modulation = jnp.split(affine(params["modulation"], embedded)[:, None], 6, axis=-1)
  shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation
  x = _normalize(h) * (1 + scale_1) + shift_1
  heads = affine(params["qkv"], x).reshape(*x.shape[:2], 3, config.heads, -1)
  query, key, value = jnp.moveaxis(heads, 2, 0)
  mixed = jax.nn.dot_product_attention(query, key, value, implementation="xla")
  h = h + gate_1 * affine(params["outputs"], mixed.reshape(x.shape))
  x = _normalize(h) * (1 + scale_2) + shift_2
  return h + gate_2 * affine(params["down"], jax.nn.gelu(affine(params["up"], x)))


def _normalize(x):
  x32 = x.astype(jnp.float32)
  centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
  return (centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-6)).astype(x.dtype)


def _positions(rows, columns, width):
  """Sines and cosines of row and column: [rows columns, width]."""
  frequencies = 10_000.0 ** (-jnp.arange(width // 4) / (width // 4))
  row, column = (i.reshape(-1, 1) * frequencies for i in jnp.mgrid[:rows, :columns])
  table = [jnp.sin(row), jnp.cos(row), jnp.sin(column), jnp.cos(column)]
  return jnp.concatenate(table, axis=-1)
