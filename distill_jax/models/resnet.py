"""ResNet with batch norms whose running statistics are read: the teacher of decoupled distillation.

Every norm has "mean" and "var" among the parameters. Gradients do not reach them: `apply` and
`observe` hold them still, `train_apply` uses the batch instead and returns parameters with new
ones. ResNet-18 is the default: 11,689,512 parameters beside the statistics. Under jit a batch is
the whole one, over all devices, so norms are synchronised.

He et al., Deep Residual Learning for Image Recognition (arXiv:1512.03385), two-layer blocks, 1 x 1
projections where the shape changes; the small stem is the one common for images of 32 pixels.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from distill_jax.models.convolution import convolve
from distill_jax.models.mlp import affine

Params = dict[str, Any]
STEMS = ("imagenet", "small")
MOMENTUM, EPSILON = 0.1, 1e-5  # of the running statistics; as PyTorch's


class Seen(NamedTuple):
  """What a batch norm met: its input [B, H, W, C] and running statistics [C]."""

  x: jax.Array
  mean: jax.Array
  variance: jax.Array


def default_config() -> ConfigDict:
  """ResNet-18 for ImageNet."""
  return ConfigDict(
    dict(
      name="resnet",
      widths=(64, 128, 256, 512),  # of the stages; the stem has the first
      blocks=(2, 2, 2, 2),  # in each stage
      stem="imagenet",  # 7 x 7 of stride 2, then 3 x 3 max pooling | small: 3 x 3 of stride 1
      num_classes=1000,
      dtype="float32",  # of the convolutions; norms are float32
    )
  )


def init(config, shape: tuple[int, ...], key: jax.Array) -> Params:
  """Parameters for images of `shape` (H, W, C).

  Args:
    config: as `default_config`.
    shape: any height and width.
    key: randomness.

  Raises:
    ValueError: no such stem, or not as many widths as stages.
  """
  if config.stem not in STEMS:
    raise ValueError(f"no stem {config.stem!r}: {', '.join(STEMS)}")
  if len(config.widths) != len(config.blocks):
    raise ValueError(f"{len(config.widths)} widths for {len(config.blocks)} stages")
  keys = iter(jax.random.split(key, 3 * sum(config.blocks) + 2))
  first = config.widths[0]
  stem = _unit(next(keys), 7 if config.stem == "imagenet" else 3, shape[-1], first)
  stages, fan_in = [], first
  for stage, (width, count) in enumerate(zip(config.widths, config.blocks, strict=True)):
    blocks = []
    for i in range(count):
      block = dict(first=_unit(next(keys), 3, fan_in, width))
      block["second"] = _unit(next(keys), 3, width, width)
      of_skip = next(keys)
      if fan_in != width or (stage and i == 0):
        block["skip"] = _unit(of_skip, 1, fan_in, width)
      blocks.append(block)
      fan_in = width
    stages.append(blocks)
  return dict(stem=stem, stages=stages, head=_head(next(keys), fan_in, config.num_classes))


def apply(config, params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Logits [B, num_classes] and pooled features [B, width] by the running statistics."""
  return observe(config, params, x)[:2]


def observe(config, params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array, list[Seen]]:
  """Logits and features of `apply`, and what each norm met, in the order of the network."""
  seen = []

  def norm(p, x):
    running = jax.lax.stop_gradient((p["mean"], p["var"]))
    seen.append(Seen(x, *running))
    return _normalize(p, x, *running)

  return *_forward(config, params, x, norm), seen


def train_apply(config, params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array, Params]:
  """Logits and features by the statistics of the batch, and the parameters with running statistics
  that have moved a tenth of the way to them. The weights in these are as they came; statistics that
  are not finite do not enter.
  """
  params = jax.tree.map(lambda x: x, params)  # dicts of our own, to write into

  def norm(p, x):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, variance = jnp.mean(wide, axis=(0, 1, 2)), jnp.var(wide, axis=(0, 1, 2))
    places = x.size // x.shape[-1]
    p["mean"] = _moved(p["mean"], mean)
    p["var"] = _moved(p["var"], variance * places / max(places - 1, 1))
    return _normalize(p, x, mean, variance)

  return *_forward(config, params, x, norm), params


def is_statistic(params: Params) -> Params:
  """True for running statistics, which no optimiser may touch; False for weights."""
  return jax.tree.map_with_path(lambda path, _: path[-1].key in ("mean", "var"), params)


def _forward(config, params, x, norm) -> tuple[jax.Array, jax.Array]:
  dtype = jnp.promote_types(x.dtype, jnp.float32)

  def unit(p, x, stride):
    return norm(p["norm"], convolve(x, p["kernel"].astype(x.dtype), stride))

  x = x.astype(config.dtype) if config.dtype != "float32" else x
  large = config.stem == "imagenet"
  x = jax.nn.relu(unit(params["stem"], x, 2 if large else 1))
  x = _max_pool(x) if large else x
  for stage, blocks in enumerate(params["stages"]):
    for i, block in enumerate(blocks):
      stride = 2 if stage and i == 0 else 1
      h = jax.nn.relu(unit(block["first"], x, stride))
      h = unit(block["second"], h, 1)
      x = jax.nn.relu(h + (unit(block["skip"], x, stride) if "skip" in block else x))
  features = jnp.mean(x.astype(dtype), axis=(1, 2))
  return affine(params["head"], features), features


def _max_pool(x):
  padding = [(0, 0), (1, 1), (1, 1), (0, 0)]
  return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)


def _normalize(p, x, mean, variance):
  factor = jax.lax.rsqrt(variance + EPSILON) * p["scale"]
  return (x * factor + (p["bias"] - mean * factor)).astype(x.dtype)


def _moved(old, new):
  new = jax.lax.stop_gradient(new)
  return jnp.where(jnp.isfinite(new), (1 - MOMENTUM) * old + MOMENTUM * new, old)


def _unit(key, size, fan_in, width):
  """A convolution without bias, normal of variance 2 / fan-out, and its norm."""
  kernel = jax.random.normal(key, (size, size, fan_in, width)) * (2 / (size * size * width)) ** 0.5
  ones, zeros = jnp.ones(width), jnp.zeros(width)
  return dict(kernel=kernel, norm=dict(scale=ones, bias=zeros, mean=zeros, var=ones))


def _head(key, fan_in, classes):
  of_kernel, of_bias = jax.random.split(key)
  bound = fan_in**-0.5
  return dict(
    kernel=jax.random.uniform(of_kernel, (fan_in, classes), minval=-bound, maxval=bound),
    bias=jax.random.uniform(of_bias, (classes,), minval=-bound, maxval=bound),
  )
