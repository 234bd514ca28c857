"""A U-Net for images, in the style of EDM's DDPM++: residual blocks with a scale and a shift from
time and conditions, attention at some resolutions, skips from the way down to the way up.

Images are NHWC. Attention is jax.nn.dot_product_attention on its XLA path, which forward mode can
pass (consistency and flow-map methods take a jvp of the network).

Song et al. (arXiv:2011.13456); Karras et al., Elucidating the Design Space of Diffusion-Based
Generative Models (arXiv:2206.00364), appendix F.2.
"""

from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.models import convolution, embedding
from distill_jax.models.mlp import affine, dense

Params = dict[str, Any]


def init(config, shape: tuple[int, ...], key: jax.Array) -> Params:
  """Parameters for images of `shape` (H, W, C).

  Args:
    config: width, multipliers (of the width, one resolution each), attention (heights that have
      it), heads, and what embedding.init reads.
    shape: H and W divisible by 2^(resolutions - 1).
    key: randomness.

  Raises:
    ValueError: the image is not divisible.
  """
  halvings = len(config.multipliers) - 1
  if shape[0] % 2**halvings or shape[1] % 2**halvings:
    raise ValueError(f"an image of {shape[0]} x {shape[1]} cannot be halved {halvings} times")
  keys = iter(jax.random.split(key, 8 * len(config.multipliers) + 8))
  widths = [config.width * m for m in config.multipliers]
  heights = [shape[0] >> level for level in range(len(widths))]
  before = [config.width, *widths]

  def block(fan_in, width, height):
    return _block(next(keys), fan_in, width, config.width, attention=height in config.attention)

  return dict(
    embed=embedding.init(config, next(keys)),
    inputs=_conv(next(keys), 3, shape[-1], config.width),
    down=[block(a, w, h) for a, w, h in zip(before, widths, heights, strict=False)],
    middle=block(widths[-1], widths[-1], heights[-1]),
    up=[block(2 * w, a, h) for a, w, h in zip(before, widths, heights, strict=False)],
    norm=_norm(config.width),
    outputs=_conv(next(keys), 3, config.width, shape[-1], scale=0.0),
  )


def apply(
  config, params: Params, x: jax.Array, angle: jax.Array, condition: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """F [B, H, W, C] and the features [B, h w, width] of the middle, from x of unit variance."""
  embedded = embedding.apply(config, params["embed"], angle, condition)
  embedded = jax.nn.silu(embedded).astype(x.dtype)
  h, skips, last = convolve(params["inputs"], x), [], len(params["down"]) - 1
  for level, block in enumerate(params["down"]):
    h = _residual(config, block, h, embedded)
    skips.append(h)
    h = _halve(h) if level < last else h
  h = features = _residual(config, params["middle"], h, embedded)
  for level in reversed(range(last + 1)):
    h = jnp.concatenate([h, skips[level]], axis=-1)
    h = _residual(config, params["up"][level], h, embedded)
    h = _double(h) if level else h
  outputs = convolve(params["outputs"], jax.nn.silu(normalize(params["norm"], h)))
  return outputs, features.reshape(len(x), -1, features.shape[-1])


def convolve(params: Params, x: jax.Array) -> jax.Array:
  """A convolution of stride 1 that keeps the size: NHWC with HWIO kernels."""
  return convolution.convolve(x, params["kernel"]) + params["bias"]


def normalize(params: Params, x: jax.Array, groups: int = 8) -> jax.Array:
  """Group norm in float32 over the last axis's groups and all places."""
  grouped = x.astype(jnp.float32).reshape(len(x), -1, groups, x.shape[-1] // groups)
  mean = jnp.mean(grouped, axis=(1, 3), keepdims=True)
  variance = jnp.mean((grouped - mean) ** 2, axis=(1, 3), keepdims=True)
  y = ((grouped - mean) * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape)
  return (y * params["scale"] + params["bias"]).astype(x.dtype)


def _residual(config, params: Params, x: jax.Array, embedded: jax.Array) -> jax.Array:
  h = convolve(params["first"], jax.nn.silu(normalize(params["norm_1"], x)))
  scale, shift = jnp.split(affine(params["embed"], embedded)[:, None, None], 2, axis=-1)
  h = normalize(params["norm_2"], h) * (1 + scale) + shift
  h = convolve(params["second"], jax.nn.silu(h))
  x = h + (convolve(params["skip"], x) if "skip" in params else x)
  return x + _attend(config, params["attention"], x) if "attention" in params else x


def _attend(config, params: Params, x: jax.Array) -> jax.Array:
  tokens = normalize(params["norm"], x).reshape(len(x), -1, x.shape[-1])
  heads = affine(params["qkv"], tokens).reshape(*tokens.shape[:2], 3, config.heads, -1)
  query, key, value = jnp.moveaxis(heads, 2, 0)
  mixed = jax.nn.dot_product_attention(query, key, value, implementation="xla")
  return affine(params["outputs"], mixed.reshape(tokens.shape)).reshape(x.shape)


def _halve(x: jax.Array) -> jax.Array:
  b, h, w, c = x.shape
  return jnp.mean(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))


def _double(x: jax.Array) -> jax.Array:
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _block(key, fan_in, width, embedded, *, attention):
  first, second, skip, embed, qkv, outputs = jax.random.split(key, 6)
  params = dict(
    norm_1=_norm(fan_in),
    first=_conv(first, 3, fan_in, width),
    embed=dense(embed, embedded, 2 * width, scale=0.1),
    norm_2=_norm(width),
    second=_conv(second, 3, width, width, scale=0.1),
  )
  if fan_in != width:
    params["skip"] = _conv(skip, 1, fan_in, width)
  if attention:
    params["attention"] = dict(
      norm=_norm(width),
      qkv=dense(qkv, width, 3 * width),
      outputs=dense(outputs, width, width, scale=0.1),
    )
  return params


def _conv(key, size, fan_in, fan_out, *, scale=1.0):
  shape = (size, size, fan_in, fan_out)
  kernel = scale * jax.random.normal(key, shape) / (size * size * fan_in) ** 0.5
  return dict(kernel=kernel, bias=jnp.zeros(fan_out))


def _norm(width):
  return dict(scale=jnp.ones(width), bias=jnp.zeros(width))
