"""A discriminator's head on the features of another network."""

from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.models.mlp import affine, dense


def init(key: jax.Array, features: int, width: int = 64) -> dict[str, Any]:
  """A perceptron of one hidden layer; the last matrix begins at 0, so that every logit does."""
  return dict(first=dense(key, features, width), last=dense(key, width, 1, scale=0.0))


def apply(params: dict[str, Any], features: jax.Array) -> jax.Array:
  """Logits [B] of features [B, N, C], a mean over the N places; positive is real."""
  features = features / jnp.sqrt(jnp.mean(features**2, axis=-1, keepdims=True) + 1e-6)
  return jnp.mean(affine(params["last"], jax.nn.silu(affine(params["first"], features))), (1, 2))
