"""A multilayer perceptron for classes, on all pixels at once: another architecture for distilled
sets. The same interface as convnet.py.

h_0 = x,   h_k = relu(W_k h_{k-1} + b_k),   logits = W h + b
"""

from typing import Any

import jax
from ml_collections import ConfigDict

from distill_jax.models.mlp import affine, dense

Params = dict[str, Any]


def default_config() -> ConfigDict:
  """Two hidden layers of 128: the MLP of the dataset-distillation literature."""
  return ConfigDict(dict(name="perceptron", width=128, depth=2, num_classes=10))


def init(config, shape: tuple[int, ...], key: jax.Array) -> Params:
  """Parameters for images of `shape` (H, W, C)."""
  *keys, head = jax.random.split(key, config.depth + 1)
  sizes = [shape[0] * shape[1] * shape[2], *[config.width] * (config.depth - 1)]
  layers = [
    dense(key, size, config.width, scale=2**0.5) for key, size in zip(keys, sizes, strict=True)
  ]
  return dict(layers=layers, head=dense(head, config.width, config.num_classes))


def apply(config, params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Logits [B, num_classes], and the features [B, width] that the head reads, of images."""
  h = x.reshape(len(x), -1)
  for layer in params["layers"]:
    h = jax.nn.relu(affine(layer, h))
  return affine(params["head"], h), h
