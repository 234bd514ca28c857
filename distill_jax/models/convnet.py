"""The ConvNet of the dataset-distillation literature: blocks of a 3 x 3 convolution, a norm, ReLU
and 2 x 2 average pooling, then a linear head.

ConvNet-3 is depth 3, width 128, norm "instance": 320,010 parameters for CIFAR-10. Weights are drawn
as PyTorch draws them, uniform in +- 1 / sqrt(fan-in), since methods that average over random
networks average over that. The authors' code pads grey images to 32 x 32 in the first convolution;
here an odd row or column is dropped by the pooling, and images keep their size.

Zhao, Mopuri, Bilen, Dataset Condensation with Gradient Matching (arXiv:2006.05929), section 4; the
architecture is that of Gidaris and Komodakis, Dynamic Few-Shot Visual Learning without Forgetting
(arXiv:1804.09458).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from distill_jax.models.convolution import convolve
from distill_jax.models.mlp import affine
from distill_jax.models.unet import normalize

Params = dict[str, Any]
NORMS = ("instance", "group", "none")


def default_config() -> ConfigDict:
  """ConvNet-3."""
  return ConfigDict(
    dict(
      name="convnet",
      width=128,
      depth=3,
      norm="instance",  # instance | group (four groups) | none; with scale and bias
      num_classes=10,
    )
  )


def init(config, shape: tuple[int, ...], key: jax.Array) -> Params:
  """Parameters for images of `shape` (H, W, C).

  Args:
    config: width, depth, norm, num_classes.
    shape: H and W of at least 2^depth.
    key: randomness.

  Raises:
    ValueError: the image is too small, or no such norm.
  """
  if config.norm not in NORMS:
    raise ValueError(f"no norm {config.norm!r}: {', '.join(NORMS)}")
  height, across = (side >> config.depth for side in shape[:2])
  if not height or not across:
    raise ValueError(f"an image of {shape[0]} x {shape[1]} cannot be halved {config.depth} times")
  *keys, head = jax.random.split(key, config.depth + 1)
  width = config.width

  def block(key, fan_in):
    conv = _uniform(key, 9 * fan_in, (3, 3, fan_in, width))
    norm = dict(scale=jnp.ones(width), bias=jnp.zeros(width))
    return dict(conv=conv) if config.norm == "none" else dict(conv=conv, norm=norm)

  channels = [shape[-1], *[width] * (config.depth - 1)]
  features = height * across * width
  return dict(
    blocks=[block(key, fan_in) for key, fan_in in zip(keys, channels, strict=True)],
    head=_uniform(head, features, (features, config.num_classes)),
  )


def apply(config, params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Logits [B, num_classes], and the features [B, H' W' width] that the head reads, of images."""
  features = layers(config, params, x)[-1].reshape(len(x), -1)
  return affine(params["head"], features), features


def layers(config, params: Params, x: jax.Array) -> list[jax.Array]:
  """The features of every block after its pooling, [B, H / 2^k, W / 2^k, width] of the k-th."""
  norms: dict[str, Callable] = dict(
    instance=_normalize_image, group=functools.partial(normalize, groups=4)
  )
  outputs = []
  for block in params["blocks"]:
    x = convolve(x, block["conv"]["kernel"])
    if config.norm != "instance":  # it takes a bias away, all but errors of rounding
      x = x + block["conv"]["bias"]
    x = norms[config.norm](block["norm"], x) if "norm" in block else x
    x = _pool(jax.nn.relu(x))
    outputs.append(x)
  return outputs


def _normalize_image(params, x):
  """`normalize` with a group for each channel, written for the CPU backend: it adds up over axes as
  they lie."""
  centred = x - jnp.mean(x, axis=(1, 2), keepdims=True)
  variance = jnp.mean(centred**2, axis=(1, 2), keepdims=True)
  return centred * (jax.lax.rsqrt(variance + 1e-5) * params["scale"]) + params["bias"]


def _pool(x):
  b, h, w, c = x.shape
  x = x[:, : h // 2 * 2, : w // 2 * 2]
  return jnp.mean(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))


def _uniform(key, fan_in, shape):
  kernel, bias = jax.random.split(key)
  bound = fan_in**-0.5
  return dict(
    kernel=jax.random.uniform(kernel, shape, minval=-bound, maxval=bound),
    bias=jax.random.uniform(bias, shape[-1:], minval=-bound, maxval=bound),
  )
