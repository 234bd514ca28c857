"""One layer of the transformer, made with all layers in one stack."""

import functools
import math

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from distill_jax.models import attention, lora

ACTIVATIONS = dict(silu=jax.nn.silu, gelu=jax.nn.gelu)


class Block(nnx.Module):
  """A layer: x + attention(norm(x)), then x + mlp(norm(x)). Made with all L layers in one stack."""

  def __init__(self, config: ml_collections.FrozenConfigDict, key: jax.Array):
    self.config = config
    n, d, f = config.layers, config.width, config.mlp_width
    h, g, k = config.heads, config.kv_heads, config.head_dim
    keys = iter(jax.random.split(key, 7))
    one = 0.0 if config.norm_plus_one else 1.0
    gpt2 = config.kind == "gpt2"

    def weight(*shape, fan_in):
      return nnx.Param(normal(next(keys), (n, *shape), fan_in**-0.5, config.param_dtype))

    def constant(value, *shape):
      return nnx.Param(jnp.full((n, *shape), value, config.param_dtype))

    self.attention_norm, self.mlp_norm = constant(one, d), constant(one, d)
    self.query = weight(d, h, k, fan_in=d)
    self.key, self.value = weight(d, g, k, fan_in=d), weight(d, g, k, fan_in=d)
    self.output = weight(h, k, d, fan_in=h * k * 2 * n)  # 2L branches sum to variance 1
    if not gpt2:
      self.gate = weight(d, f, fan_in=d)
    self.up = weight(d, f, fan_in=d)
    self.down = weight(f, d, fan_in=f * 2 * n)
    if gpt2:
      self.attention_norm_bias, self.mlp_norm_bias = constant(0, d), constant(0, d)
      self.output_bias, self.up_bias, self.down_bias = (
        constant(0, d),
        constant(0, f),
        constant(0, d),
      )
    if config.qkv_bias or gpt2:
      self.query_bias = constant(0, h, k)
      self.key_bias, self.value_bias = constant(0, g, k), constant(0, g, k)
    if config.qk_norm:
      self.query_norm, self.key_norm = constant(one, k), constant(one, k)
    if config.sandwich_norms:
      self.post_attention_norm, self.post_mlp_norm = constant(one, d), constant(one, d)
    if config.lora_rank:
      self._add_factors(jax.random.fold_in(key, 1))
    if config.weights == "int8":
      matrices = {name: getattr(self, name)[...] for name in lora.MATRICES if hasattr(self, name)}
      for name, value in lora.int8(matrices).items():
        setattr(self, name, nnx.Param(value))

  def _add_factors(self, key):
    rank, dtype = self.config.lora_rank, self.config.param_dtype
    for i, (name, inputs) in enumerate(lora.MATRICES.items()):
      if hasattr(self, name):
        n, *shape = getattr(self, name).shape
        wide, high = shape[:inputs], shape[inputs:]
        a = normal(jax.random.fold_in(key, i), (n, *wide, rank), math.prod(wide) ** -0.5, dtype)
        setattr(self, f"{name}_a", nnx.Param(a))
        setattr(self, f"{name}_b", nnx.Param(jnp.zeros((n, rank, *high), dtype)))

  def __call__(self, x, angles, attend):
    """x [B, T, D] -> (x, memory, values), where attend(query, key, value) -> ([B, T, H, K], memory)
    and values are what `hidden` shows of a layer."""
    config, norm = self.config, functools.partial(normalize, self.config)
    gpt2 = config.kind == "gpt2"

    def linear(x, name, biased=gpt2):
      y = _linear(x, getattr(self, name))
      if config.weights == "int8":
        y = y * getattr(self, f"{name}_scale").reshape(y.shape[2:]).astype(y.dtype)
      if config.lora_rank:
        low = _linear(x, getattr(self, f"{name}_a"))
        y = y + config.lora_alpha / config.lora_rank * _linear(low, getattr(self, f"{name}_b"))
      return y + getattr(self, f"{name}_bias").astype(y.dtype) if biased else y

    y = norm(x, self.attention_norm, self.attention_norm_bias if gpt2 else None)
    query, key, value = (linear(y, n, config.qkv_bias or gpt2) for n in ("query", "key", "value"))
    if config.qk_norm:
      query, key = norm(query, self.query_norm), norm(key, self.key_norm)
    before = dict(query=query, key=key, value=value)
    if not gpt2:
      query, key = attention.rotate(query, angles), attention.rotate(key, angles)
    heads, memory = attend(query, key, value)
    y = linear(heads, "output")
    x = x + (norm(y, self.post_attention_norm) if config.sandwich_norms else y)
    y = norm(x, self.mlp_norm, self.mlp_norm_bias if gpt2 else None)
    activation = ACTIVATIONS[config.activation]
    units = activation(linear(y, "up")) if gpt2 else activation(linear(y, "gate")) * linear(y, "up")
    y = linear(units, "down")
    x = x + (norm(y, self.post_mlp_norm) if config.sandwich_norms else y)
    return x, memory, dict(before, heads=heads, units=units, residual=x)


def normal(key, shape, std, dtype):
  """Normal, cut at two of its deviations, then scaled to deviation `std`."""
  return (jax.random.truncated_normal(key, -2, 2, shape) * (std / 0.8796)).astype(dtype)


def _linear(x, weight):
  """x [B, T, *in], weight [*in, *out] -> [B, T, *out]; flat, or XLA would copy to transpose."""
  flat = x.reshape(x.shape[0] * x.shape[1], -1)
  y = flat @ weight.astype(x.dtype).reshape(flat.shape[1], -1)
  return y.reshape(*x.shape[:2], *weight.shape[x.ndim - 2 :])


def normalize(config, x, weight, bias=None):
  """x w / rms(x) over the last axis; with a bias b, x - mean(x) in the place of x, plus b."""
  wide, scale = x.astype(jnp.float32), weight.astype(jnp.float32) + float(config.norm_plus_one)
  if bias is not None:
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
  inverse = jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + config.norm_eps)
  y = wide * inverse * scale
  return (y if bias is None else y + bias.astype(jnp.float32)).astype(x.dtype)
