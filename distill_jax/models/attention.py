"""Causal attention of the transformer: which layers slide, rotations, and the product itself.

References:
  Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding (arXiv:2104.09864).
  Chen et al., Extending Context Window of Large Language Models via Positional Interpolation
    (arXiv:2306.15595), eq. 4: linear scaling.
  Grattafiori et al., The Llama 3 Herd of Models (arXiv:2407.21783), 3.4.2: long contexts; the
    scaling itself is in the configuration files of Llama 3.1.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

flash = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")


def slides(config) -> list[bool]:
  """Whether each layer sees `sliding_window` tokens instead of all."""
  if config.full_layers:
    full = set(config.full_layers)
  else:
    pattern = config.sliding_pattern or config.layers + 1
    full = {i for i in range(config.layers) if (i + 1) % pattern == 0}
  return [config.sliding_window > 0 and i not in full for i in range(config.layers)]


def variation(config):
  """What differs between layers: [L] number, [L] window, [L, K / 2] rates of rotation."""
  sliding = np.array(slides(config))
  windows = np.where(sliding, config.sliding_window, np.iinfo(np.int32).max)
  local = sliding & (config.rope_local_theta > 0)
  rates = np.where(
    local[:, None],
    _rates(config.head_dim, config.rope_local_theta or 1.0),
    _scaled(config, _rates(config.head_dim, config.rope_theta)),
  )
  return np.arange(config.layers), windows.astype(np.int32), rates.astype(np.float32)


def _rates(size, theta):
  """Radians per position of each pair: theta^(-2i / K), [K / 2] float64."""
  return theta ** (-np.arange(0, size, 2) / size)


def _scaled(config, rates):
  """Rates for contexts longer than those of the first training.

  linear: rate / factor. llama3: with w turns in `rope_original` positions, rates of w > high are
  kept, those of w < low are divided, and between the two they go over linearly in w.
  """
  if config.rope_scaling == "linear":
    return rates / config.rope_factor
  if config.rope_scaling == "llama3":
    turns = config.rope_original * rates / (2 * np.pi)
    keep = np.clip((turns - config.rope_low) / (config.rope_high - config.rope_low), 0, 1)
    return rates * (keep + (1 - keep) / config.rope_factor)
  return rates


def rotate(x, angles):
  """Turns each pair (x[i], x[i + K / 2]) of x [B, T, H, K]."""
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def softcap(x, cap):
  return cap * jnp.tanh(x / cap) if cap else x


def divisor(config) -> float:
  """What scores are divided by."""
  return (config.query_scalar or config.head_dim) ** 0.5


def attention(config, query, key, value, mask):
  """query [B, T, H, K], key and value [B, G, S, K], mask [1 or B, T, S] -> [B, T, H, K].

  The weights are normalised after the second product. On CPU several times as fast as
  jax.nn.dot_product_attention: the H / G queries of a key are rows of one matrix.
  """
  b, t, h, k = query.shape
  g, r = key.shape[1], h // key.shape[1]
  query = jnp.moveaxis(query.reshape(b, t, g, r, k), 1, 3).reshape(b, g, r * t, k)
  scores = jnp.einsum("bgtk,bgsk->bgts", query, key, preferred_element_type=jnp.float32)
  scores = softcap(scores / divisor(config), config.attention_softcap).reshape(b, g, r, t, -1)
  scores = scores + jnp.where(mask, 0.0, -1e30)[:, None, None]
  top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  weights = jnp.exp(scores - top).reshape(b, g, r * t, -1)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  weights = weights.astype(value.dtype)
  heads = jnp.einsum("bgts,bgsk->bgtk", weights, value, preferred_element_type=jnp.float32) / total
  return jnp.moveaxis(heads.astype(value.dtype).reshape(b, g, r, t, k), 3, 1).reshape(b, t, h, k)
