"""A decoder-only transformer in the style of Llama, Qwen and Gemma.

`make(config)` returns pure functions on a plain nested dict of arrays. With L layers, width D, H
heads of size K, G key-value heads, feed-forward width F and V tokens the parameters are

  embed/tokens [V, D]   final_norm [D]   head [D, V] (unless tied)
  layers/  attention_norm, mlp_norm, (post_attention_norm, post_mlp_norm) [L, D]
           query [L, D, H, K]   key, value [L, D, G, K]   output [L, H, K, D]
           (query_norm, key_norm [L, K]   query_bias [L, H, K]   key_bias, value_bias [L, G, K])
           gate, up [L, D, F]   down [L, F, D]                 (in brackets: where configured)

Heads have an axis of their own, so that a mesh axis splits whole heads or none. Parameters stay in
`param_dtype` and are cast where used; norms, rotations, softmax and logits are float32.

References:
  Touvron et al., LLaMA: Open and Efficient Foundation Language Models (arXiv:2302.13971), 2.2.
  Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding (arXiv:2104.09864).
  Ainslie et al., GQA: Training Generalized Multi-Query Transformer Models (arXiv:2305.13245).
  Gemma Team, Gemma 2 (arXiv:2408.00118), section 2; Gemma 3 (arXiv:2503.19786), section 2.
  Yang et al., Qwen3 Technical Report (arXiv:2505.09388), section 2: QK-norm.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx


class Model(NamedTuple):
  """Pure functions of parameters as `init` makes them; tokens, positions and segments [B, T]."""

  init: Callable[[jax.Array], dict]  # (key) -> params
  hidden: Callable[..., jax.Array]  # (params, tokens, *, positions, segment_ids) -> [B, T, D]
  decode: Callable[..., Any]  # (params, tokens, cache, positions) -> ([B, T, D], cache)
  init_cache: Callable[[int, int], dict]  # (batch, length) -> key, value [B, L, G, length, K]
  head: Callable[[dict], jax.Array]  # (params) -> [D, V] in the compute dtype
  logits: Callable[[dict, jax.Array], jax.Array]  # (params, [..., D]) -> [..., V] float32, capped
  vocabulary: int  # ids that mean something; what pads the head behind them is -inf in `logits`
  logit_softcap: float  # 0: none


def default_config() -> ml_collections.ConfigDict:
  """A small Llama: every key that `make` reads."""
  config = ml_collections.ConfigDict()
  config.vocab_size = 256
  config.layers = 4
  config.width = 192
  config.heads = 6
  config.kv_heads = 6  # fewer than heads: grouped-query attention
  config.head_dim = 32  # even; heads * head_dim need not be width
  config.mlp_width = 512
  config.activation = "silu"  # of the gate: silu (SwiGLU) | gelu (GeGLU, tanh approximation)
  config.norm_eps = 1e-6
  config.norm_plus_one = False  # norms scale by 1 + w, w from 0 (Gemma), not by w from 1
  config.sandwich_norms = False  # norms after attention and MLP too (Gemma 2, 3)
  config.qk_norm = False  # a norm on each query and key head (Qwen 3, Gemma 3)
  config.qkv_bias = False  # biases on query, key and value (Qwen 2)
  config.tie_embeddings = True  # the head is the embedding, transposed
  config.scale_embeddings = False  # embeddings times sqrt(width) (Gemma)
  config.logit_softcap = 0.0  # c: c tanh(logits / c) (Gemma 2: 30); 0: none
  config.attention_softcap = 0.0  # the same on attention scores (Gemma 2: 50); 0: none
  config.rope_theta = 10_000.0
  config.rope_local_theta = 0.0  # of sliding layers (Gemma 3: 10000); 0: rope_theta
  config.sliding_window = 0  # tokens a sliding layer sees, its own included; 0: none slides
  config.sliding_pattern = 0  # every n-th layer sees all (Gemma 2: 2, Gemma 3: 6); 0: all slide
  config.dtype = "float32"  # of activations and matrix products: float32 | bfloat16
  config.param_dtype = "float32"
  config.remat = "none"  # recompute in the backward pass: none | full | dots (all but x @ weight)
  config.attention = "xla"  # xla (anywhere, jvp too) | cudnn (flash attention, GPU, no jvp)
  return config


class Block(nnx.Module):
  """A layer: x + attention(norm(x)), then x + mlp(norm(x)). Made with all L layers in one stack."""

  def __init__(self, config: ml_collections.FrozenConfigDict, key: jax.Array):
    self.config = config
    n, d, f = config.layers, config.width, config.mlp_width
    h, g, k = config.heads, config.kv_heads, config.head_dim
    keys = iter(jax.random.split(key, 7))
    one = 0.0 if config.norm_plus_one else 1.0

    def weight(*shape, fan_in):
      return nnx.Param(_normal(next(keys), (n, *shape), fan_in**-0.5, config.param_dtype))

    def constant(value, *shape):
      return nnx.Param(jnp.full((n, *shape), value, config.param_dtype))

    self.attention_norm, self.mlp_norm = constant(one, d), constant(one, d)
    self.query = weight(d, h, k, fan_in=d)
    self.key, self.value = weight(d, g, k, fan_in=d), weight(d, g, k, fan_in=d)
    self.output = weight(h, k, d, fan_in=h * k * 2 * n)  # 2L branches sum to variance 1
    self.gate, self.up = weight(d, f, fan_in=d), weight(d, f, fan_in=d)
    self.down = weight(f, d, fan_in=f * 2 * n)
    if config.qkv_bias:
      self.query_bias = constant(0, h, k)
      self.key_bias, self.value_bias = constant(0, g, k), constant(0, g, k)
    if config.qk_norm:
      self.query_norm, self.key_norm = constant(one, k), constant(one, k)
    if config.sandwich_norms:
      self.post_attention_norm, self.post_mlp_norm = constant(one, d), constant(one, d)

  def __call__(self, x, angles, attend):
    """x [B, T, D] -> (x, memory), where attend(query, key, value) -> ([B, T, H, K], memory)."""
    config, norm = self.config, functools.partial(_norm, self.config)
    y = norm(x, self.attention_norm)
    query, key, value = _linear(y, self.query), _linear(y, self.key), _linear(y, self.value)
    if config.qkv_bias:
      query, key = query + self.query_bias.astype(x.dtype), key + self.key_bias.astype(x.dtype)
      value = value + self.value_bias.astype(x.dtype)
    if config.qk_norm:
      query, key = norm(query, self.query_norm), norm(key, self.key_norm)
    heads, memory = attend(_rotate(query, angles), _rotate(key, angles), value)
    y = _linear(heads, self.output)
    x = x + (norm(y, self.post_attention_norm) if config.sandwich_norms else y)
    y = norm(x, self.mlp_norm)
    gate = _ACTIVATIONS[config.activation](_linear(y, self.gate))
    y = _linear(gate * _linear(y, self.up), self.down)
    return x + (norm(y, self.post_mlp_norm) if config.sandwich_norms else y), memory


def make(config: ml_collections.ConfigDict, vocabulary: int | None = None) -> Model:
  """The model that `config` describes; `default_config` lists the keys.

  Ids from `vocabulary` on are padding of the head (None: there are none), which no text holds.

  `hidden` runs whole sequences, causally; positions count from 0 unless given, and with segment
  ids (packed sequences) tokens see their own segment alone. `decode` adds tokens to a cache: that
  at position p of its row goes to slot p (nowhere, if the cache is shorter) and sees slots 0 to p.

  Raises:
    ValueError: the config describes no model.
  """
  _check(config)
  config = ml_collections.FrozenConfigDict(config)
  dtype = jnp.dtype(config.dtype)
  size = min(vocabulary or config.vocab_size, config.vocab_size)
  graph, _ = nnx.split(nnx.eval_shape(lambda: Block(config, jax.random.key(0))))

  def init(key):
    embed_key, head_key, layers_key = jax.random.split(key, 3)
    tokens = _normal(embed_key, (config.vocab_size, config.width), 0.02, config.param_dtype)
    layers = nnx.to_pure_dict(nnx.state(Block(config, layers_key)))
    params = dict(embed=dict(tokens=tokens), layers=layers, final_norm=layers["mlp_norm"][0])
    if not config.tie_embeddings:
      params["head"] = _normal(head_key, tokens.shape[::-1], 0.02, config.param_dtype)
    return params

  def run(params, tokens, positions, lag, same, memory, attend):
    """Embedding, layers, final norm; lag [1 or B, T, S] is how far a key lies behind a query."""
    scale = config.width**0.5 if config.scale_embeddings else 1.0
    x = _embed(params["embed"]["tokens"], tokens).astype(dtype) * jnp.asarray(scale, dtype)

    def body(carry, layer):
      x, memory = carry
      weights, i, window, rates = layer
      angles = positions[..., None, None] * rates  # [B, T, 1, K / 2]
      mask = same & (lag >= 0) & (lag < window)
      here = functools.partial(attend, mask=mask, memory=memory, layer=i)
      return nnx.merge(graph, weights)(x, angles, here), None

    if config.remat != "none":
      body = jax.checkpoint(body, policy=_REMAT[config.remat], prevent_cse=False)
    (x, memory), _ = jax.lax.scan(body, (x, memory), (params["layers"], *_variation(config)))
    return _norm(config, x, params["final_norm"]), memory

  def hidden(params, tokens, *, positions=None, segment_ids=None):
    order = jnp.arange(tokens.shape[1])[None]
    lag = order[:, :, None] - order[:, None]  # [1, T, T]
    same = True if segment_ids is None else segment_ids[:, :, None] == segment_ids[:, None]
    causal_only = segment_ids is None and not config.sliding_window

    def attend(query, key, value, *, mask, memory, layer):
      if config.attention == "xla":
        key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
        return _attention(config, query, key, value, mask), memory
      mask = None if causal_only else mask[:, None]
      return _flash_attention(query, key, value, mask=mask, is_causal=causal_only), memory

    return run(params, tokens, order if positions is None else positions, lag, same, (), attend)[0]

  def init_cache(batch, length):
    shape = (batch, config.layers, config.kv_heads, length, config.head_dim)
    return dict(key=jnp.zeros(shape, dtype), value=jnp.zeros(shape, dtype))

  def decode(params, tokens, cache, positions):
    lag = positions[:, :, None] - jnp.arange(cache["key"].shape[3])  # [B, T, S]
    write = jax.vmap(lambda row, layer, at, new: row.at[layer, :, at].set(new), (0, None, 0, 0))

    def attend(query, key, value, *, mask, memory, layer):
      k = write(memory["key"], layer, positions, key)  # in place, for the scan carries the cache
      v = write(memory["value"], layer, positions, value)
      return _attention(config, query, k[:, layer], v[:, layer], mask), dict(key=k, value=v)

    return run(params, tokens, positions, lag, True, cache, attend)

  def head(params):
    return (params["embed"]["tokens"].T if config.tie_embeddings else params["head"]).astype(dtype)

  def logits(params, hidden):
    flat = hidden.reshape(-1, config.width)
    scores = jnp.matmul(flat, head(params), preferred_element_type=jnp.float32)
    scores = _softcap(scores, config.logit_softcap)
    if size < config.vocab_size:
      scores = jnp.where(jnp.arange(config.vocab_size) < size, scores, -jnp.inf)
    return scores.reshape(*hidden.shape[:-1], -1)

  return Model(init, hidden, decode, init_cache, head, logits, size, config.logit_softcap)


_ACTIVATIONS = dict(silu=jax.nn.silu, gelu=jax.nn.gelu)
_REMAT = dict(none=None, full=None, dots=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
_flash_attention = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")


def _normal(key, shape, std, dtype):
  """Normal, cut at two of its deviations, then scaled to deviation `std`."""
  return (jax.random.truncated_normal(key, -2, 2, shape) * (std / 0.8796)).astype(dtype)


def _linear(x, weight):
  """x [B, T, *in], weight [*in, *out] -> [B, T, *out]; flat, or XLA would copy to transpose."""
  flat = x.reshape(x.shape[0] * x.shape[1], -1)
  y = flat @ weight.astype(x.dtype).reshape(flat.shape[1], -1)
  return y.reshape(*x.shape[:2], *weight.shape[x.ndim - 2 :])


def _norm(config, x, weight):
  """x w / rms(x) over the last axis."""
  wide, scale = x.astype(jnp.float32), weight.astype(jnp.float32) + float(config.norm_plus_one)
  inverse = jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + config.norm_eps)
  return (wide * inverse * scale).astype(x.dtype)


def _softcap(x, cap):
  return cap * jnp.tanh(x / cap) if cap else x


def _embed(table, tokens):
  """Rows of table [V, D]. On a mesh: width whole, batch split; XLA would split the width of all."""
  mesh = jax.sharding.get_abstract_mesh()
  if not {"data", "fsdp"} <= set(mesh.axis_names) or mesh.manual_axes:
    return table[tokens]
  rows = ("data", "fsdp") if len(tokens) % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else None
  x = jax.lax.with_sharding_constraint(table, jax.P(jax.P.UNCONSTRAINED, None))[tokens]
  return jax.lax.with_sharding_constraint(x, jax.P(rows))


def _variation(config):
  """What differs between layers: [L] number, [L] window, [L, K / 2] rates theta^(-2i / K)."""
  pattern = config.sliding_pattern or config.layers + 1
  slides = [config.sliding_window > 0 and (i + 1) % pattern != 0 for i in range(config.layers)]
  windows = np.where(slides, config.sliding_window, np.iinfo(np.int32).max)
  thetas = np.where(slides, config.rope_local_theta or config.rope_theta, config.rope_theta)
  rates = thetas[:, None] ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
  return np.arange(config.layers), windows.astype(np.int32), rates.astype(np.float32)


def _rotate(x, angles):
  """Turns each pair (x[i], x[i + K / 2]) of x [B, T, H, K]."""
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _attention(config, query, key, value, mask):
  """query [B, T, H, K], key and value [B, G, S, K], mask [1 or B, T, S] -> [B, T, H, K].

  The weights are normalised after the second product. On CPU several times as fast as
  jax.nn.dot_product_attention: the H / G queries of a key are rows of one matrix.
  """
  b, t, h, k = query.shape
  g, r = key.shape[1], h // key.shape[1]
  query = jnp.moveaxis(query.reshape(b, t, g, r, k), 1, 3).reshape(b, g, r * t, k)
  scores = jnp.einsum("bgtk,bgsk->bgts", query, key, preferred_element_type=jnp.float32)
  scores = _softcap(scores / k**0.5, config.attention_softcap).reshape(b, g, r, t, -1)
  scores = scores + jnp.where(mask, 0.0, -1e30)[:, None, None]
  top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  weights = jnp.exp(scores - top).reshape(b, g, r * t, -1)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  weights = weights.astype(value.dtype)
  heads = jnp.einsum("bgts,bgsk->bgtk", weights, value, preferred_element_type=jnp.float32) / total
  return jnp.moveaxis(heads.astype(value.dtype).reshape(b, g, r, t, k), 3, 1).reshape(b, t, h, k)


def _check(config):
  dtypes = ("float32", "bfloat16")
  choices = dict(activation=_ACTIVATIONS, remat=_REMAT, dtype=dtypes, param_dtype=dtypes)
  choices["attention"] = ("xla", "cudnn")
  for name, allowed in choices.items():
    if config[name] not in allowed:
      raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {config[name]!r}")
  if config.heads % config.kv_heads:
    raise ValueError(f"heads ({config.heads}) must be a multiple of kv_heads ({config.kv_heads})")
  if config.head_dim % 2:
    raise ValueError(f"head_dim must be even, for rotations, got {config.head_dim}")
  if (config.sliding_pattern or config.rope_local_theta) and not config.sliding_window:
    raise ValueError("sliding_pattern and rope_local_theta need a sliding_window")
  if config.attention == "cudnn" and config.attention_softcap:
    raise ValueError("attention_softcap needs attention 'xla', got 'cudnn'")
