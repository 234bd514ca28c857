"""A small vision transformer for classes: patches, pre-norm blocks, the mean of all places, a
linear head. The same interface as convnet.py.

Dosovitskiy et al., An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale
(arXiv:2010.11929); mean pooling instead of a class token, as in Beyer, Zhai, Kolesnikov, Better
plain ViT baselines for ImageNet-1k (arXiv:2205.01580), but with learned positions.
"""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from distill_jax.models.mlp import affine, dense

Params = dict[str, Any]


def default_config() -> ConfigDict:
  """About 200,000 parameters, for images of 28 x 28."""
  return ConfigDict(dict(name="vit", width=64, depth=4, heads=4, patch=4, num_classes=10))


def init(config, shape: tuple[int, ...], key: jax.Array) -> Params:
  """Parameters for images of `shape` (H, W, C).

  Args:
    config: as `default_config`.
    shape: H and W divisible by the patch.
    key: randomness.

  Raises:
    ValueError: the image is not divisible, or the width not by the heads.
  """
  height, across, channels = shape
  width, patch = config.width, config.patch
  if height % patch or across % patch:
    raise ValueError(f"patches of {patch} do not tile an image of {height} x {across}")
  if width % config.heads:
    raise ValueError(f"width {width} does not split into {config.heads} heads")
  places = (height // patch) * (across // patch)
  keys = jax.random.split(key, 4)

  def layer(key):
    qkv, outputs, up, down = jax.random.split(key, 4)
    return dict(
      norm_1=_norm(width),
      qkv=dense(qkv, width, 3 * width),
      outputs=dense(outputs, width, width),
      norm_2=_norm(width),
      up=dense(up, width, 4 * width),
      down=dense(down, 4 * width, width),
    )

  return dict(
    inputs=dense(keys[0], patch**2 * channels, width),
    positions=0.02 * jax.random.normal(keys[1], (places, width)),
    layers=jax.vmap(layer)(jax.random.split(keys[2], config.depth)),
    norm=_norm(width),
    head=dense(keys[3], width, config.num_classes, scale=0.1),
  )


def apply(config, params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Logits [B, num_classes], and the features [B, width] that the head reads, of images."""
  b, height, across, channels = x.shape
  p = config.patch
  patches = x.reshape(b, height // p, p, across // p, p, channels).swapaxes(2, 3)
  h = affine(params["inputs"], patches.reshape(b, -1, p * p * channels)) + params["positions"]

  def layer(h, p):
    heads = affine(p["qkv"], _normalize(p["norm_1"], h))
    query, key, value = jnp.moveaxis(heads.reshape(*h.shape[:2], 3, config.heads, -1), 2, 0)
    mixed = jax.nn.dot_product_attention(query, key, value, implementation="xla")
    h = h + affine(p["outputs"], mixed.reshape(h.shape))
    hidden = jax.nn.gelu(affine(p["up"], _normalize(p["norm_2"], h)))
    return h + affine(p["down"], hidden), None

  h, _ = jax.lax.scan(layer, h, params["layers"])
  features = jnp.mean(_normalize(params["norm"], h), axis=1)
  return affine(params["head"], features), features


def _norm(width):
  return dict(scale=jnp.ones(width), bias=jnp.zeros(width))


def _normalize(params, x):
  centred = x - jnp.mean(x, axis=-1, keepdims=True)
  unit = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-6)
  return unit * params["scale"] + params["bias"]
