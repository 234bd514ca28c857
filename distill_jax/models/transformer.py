"""A decoder-only transformer in the style of Llama, Mistral, Qwen and Gemma, or of GPT-2.

`make(config)` returns pure functions on a plain nested dict of arrays. With L layers, width D, H
heads of size K, G key-value heads, feed-forward width F and V tokens the parameters are

  embed/tokens [V, D]   final_norm [D]   head [D, V] (unless tied)
  layers/  attention_norm, mlp_norm, (post_attention_norm, post_mlp_norm) [L, D]
           query [L, D, H, K]   key, value [L, D, G, K]   output [L, H, K, D]
           (query_norm, key_norm [L, K]   query_bias [L, H, K]   key_bias, value_bias [L, G, K])
           gate, up [L, D, F]   down [L, F, D]                 (in brackets: where configured)

and of kind gpt2 no gate, but embed/positions [P, D] and a bias of each matrix and each norm:
attention_norm_bias, mlp_norm_bias, output_bias, down_bias [L, D], up_bias [L, F], final_norm_bias.

Heads have an axis of their own, so that a mesh axis splits whole heads or none. Parameters stay in
`param_dtype` and are cast where used; norms, rotations, softmax and logits are float32.

References:
  Radford et al., Language Models are Unsupervised Multitask Learners (2019): GPT-2.
  Touvron et al., LLaMA: Open and Efficient Foundation Language Models (arXiv:2302.13971), 2.2.
  Ainslie et al., GQA: Training Generalized Multi-Query Transformer Models (arXiv:2305.13245).
  Jiang et al., Mistral 7B (arXiv:2310.06825), section 2: sliding window.
  Gemma Team, Gemma 2 (arXiv:2408.00118), section 2; Gemma 3 (arXiv:2503.19786), section 2.
  Yang et al., Qwen3 Technical Report (arXiv:2505.09388), section 2: QK-norm.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from distill_jax.models import attention, lora
from distill_jax.models.block import ACTIVATIONS, Block, normal, normalize


class Model(NamedTuple):
  """Pure functions of parameters as `init` makes them; tokens, positions and segments [B, T]."""

  init: Callable[[jax.Array], dict]  # (key) -> params
  hidden: Callable[..., Any]  # (params, tokens, *, positions, segment_ids, features) -> [B, T, D]
  decode: Callable[..., Any]  # (params, tokens, cache, positions) -> ([B, T, D], cache)
  init_cache: Callable[[int, int], dict]  # (batch, length) -> key, value [B, L, G, length, K]
  head: Callable[[dict], jax.Array]  # (params) -> [D, V], or [V, D] if tied, in the compute dtype
  logits: Callable[[dict, jax.Array], jax.Array]  # (params, [..., D]) -> [..., V] float32, capped
  vocabulary: int  # ids that mean something; what pads the head behind them is -inf in `logits`
  logit_softcap: float  # 0: none
  tied: bool  # the head is the embedding


def default_config() -> ml_collections.ConfigDict:
  """A small Llama: every key that `make` reads."""
  config = ml_collections.ConfigDict()
  config.kind = "llama"  # llama: rotations, RMS norms, gated MLP | gpt2: see the top of this file
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
  config.query_scalar = 0.0  # scores over its square root (Gemma); 0: head_dim
  config.max_positions = 1024  # rows of embed/positions, for kind gpt2 alone
  config.rope_theta = 10_000.0
  config.rope_local_theta = 0.0  # of sliding layers (Gemma 3: 10000); 0: rope_theta
  config.rope_scaling = "none"  # none | linear | llama3, of all rates but those of rope_local_theta
  config.rope_factor = 1.0  # this much slower
  config.rope_low = 1.0  # llama3: turns in rope_original positions below which rates are divided,
  config.rope_high = 4.0  # and above which they are kept
  config.rope_original = 8192
  config.sliding_window = 0  # tokens a sliding layer sees, its own included; 0: none slides
  config.sliding_pattern = 0  # every n-th layer sees all (Gemma 2: 2, Gemma 3: 6); 0: all slide
  config.full_layers = ()  # or the numbers, from 0, of those that see all
  config.dtype = "float32"  # of activations and matrix products: float32 | bfloat16
  config.param_dtype = "float32"
  config.weights = "float"  # float | int8: matrices of the layers; not of a model that learns
  config.lora_rank = 0  # of a student that learns factors of this rank alone, see lora.py; 0: all
  config.lora_alpha = 16.0  # factors are scaled by lora_alpha / lora_rank
  config.remat = "none"  # recompute in the backward pass: none | full | dots (all but x @ weight)
  config.attention = "xla"  # xla (anywhere, jvp too) | cudnn (flash attention, GPU, no jvp)
  return config


def make(config: ml_collections.ConfigDict, vocabulary: int | None = None) -> Model:
  """The model that `config` describes; `default_config` lists the keys.

  Ids from `vocabulary` on are padding of the head (None: there are none), which no text holds.

  `hidden` runs whole sequences, causally; positions count from 0 unless given, and with segment
  ids (packed sequences) tokens see their own segment alone. With features=True it returns
  (hidden, values): `residual` [L, B, T, D] after each layer, `query` [L, B, T, H, K], `key` and
  `value` [L, B, T, G, K] with biases and QK-norm, before rotation, `heads` [L, B, T, H, K], what
  they attend to, and the MLP's `units` [L, B, T, F]. `decode` adds tokens to a cache: that at
  position p of its row goes to slot p (nowhere, if the cache is shorter) and sees slots 0 to p.

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
    tokens = normal(embed_key, (config.vocab_size, config.width), 0.02, config.param_dtype)
    layers = nnx.to_pure_dict(nnx.state(Block(config, layers_key)))
    params = dict(embed=dict(tokens=tokens), layers=layers, final_norm=layers["mlp_norm"][0])
    if config.kind == "gpt2":
      shape = (config.max_positions, config.width)
      places = normal(jax.random.fold_in(embed_key, 1), shape, 0.01, config.param_dtype)
      params["embed"]["positions"] = places
      params["final_norm_bias"] = layers["mlp_norm_bias"][0]
    if not config.tie_embeddings:
      params["head"] = normal(head_key, tokens.shape[::-1], 0.02, config.param_dtype)
    return params

  def run(params, tokens, positions, lag, same, memory, attend, features=False):
    """Embedding, layers, final norm; lag [1 or B, T, S] is how far a key lies behind a query."""
    params = lora.held(params) if config.lora_rank else params
    scale = config.width**0.5 if config.scale_embeddings else 1.0
    x = _embed(params["embed"]["tokens"], tokens).astype(dtype) * jnp.asarray(scale, dtype)
    if config.kind == "gpt2":
      x = x + params["embed"]["positions"][positions].astype(dtype)

    def body(carry, layer):
      x, memory = carry
      weights, i, window, rates = layer
      angles = positions[..., None, None] * rates  # [B, T, 1, K / 2]
      mask = same & (lag >= 0) & (lag < window)
      here = functools.partial(attend, mask=mask, memory=memory, layer=i)
      x, memory, values = nnx.merge(graph, weights)(x, angles, here)
      return (x, memory), values if features else None

    if config.remat != "none":
      body = jax.checkpoint(body, policy=_REMAT[config.remat], prevent_cse=False)
    layers = (params["layers"], *attention.variation(config))
    (x, memory), values = jax.lax.scan(body, (x, memory), layers)
    return normalize(config, x, params["final_norm"], params.get("final_norm_bias")), memory, values

  def hidden(params, tokens, *, positions=None, segment_ids=None, features=False):
    order = jnp.arange(tokens.shape[1])[None]
    lag = order[:, :, None] - order[:, None]  # [1, T, T]
    same = True if segment_ids is None else segment_ids[:, :, None] == segment_ids[:, None]
    causal_only = segment_ids is None and not config.sliding_window

    def attend(query, key, value, *, mask, memory, layer):
      if config.attention == "xla":
        key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
        return attention.attention(config, query, key, value, mask), memory
      mask = None if causal_only else mask[:, None]
      how = dict(mask=mask, is_causal=causal_only, scale=1 / attention.divisor(config))
      return attention.flash(query, key, value, **how), memory

    positions = order if positions is None else positions
    x, _, values = run(params, tokens, positions, lag, same, (), attend, features)
    return (x, values) if features else x

  def init_cache(batch, length):
    shape = (batch, config.layers, config.kv_heads, length, config.head_dim)
    return dict(key=jnp.zeros(shape, dtype), value=jnp.zeros(shape, dtype))

  def decode(params, tokens, cache, positions):
    lag = positions[:, :, None] - jnp.arange(cache["key"].shape[3])  # [B, T, S]
    write = jax.vmap(lambda row, layer, at, new: row.at[layer, :, at].set(new), (0, None, 0, 0))

    def attend(query, key, value, *, mask, memory, layer):
      k = write(memory["key"], layer, positions, key)  # in place, for the scan carries the cache
      v = write(memory["value"], layer, positions, value)
      return attention.attention(config, query, k[:, layer], v[:, layer], mask), dict(
        key=k, value=v
      )

    return run(params, tokens, positions, lag, True, cache, attend)[:2]

  def head(params):
    params = lora.held(params) if config.lora_rank else params
    return (params["embed"]["tokens"] if config.tie_embeddings else params["head"]).astype(dtype)

  def logits(params, hidden):
    flat = hidden.reshape(-1, config.width)
    matrix = head(params).T if config.tie_embeddings else head(params)
    scores = jnp.matmul(flat, matrix, preferred_element_type=jnp.float32)
    scores = attention.softcap(scores, config.logit_softcap)
    if size < config.vocab_size:
      scores = jnp.where(jnp.arange(config.vocab_size) < size, scores, -jnp.inf)
    return scores.reshape(*hidden.shape[:-1], -1)

  data = size, config.logit_softcap, config.tie_embeddings
  return Model(init, hidden, decode, init_cache, head, logits, *data)


_REMAT = dict(none=None, full=None, dots=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)


def _embed(table, tokens):
  """Rows of table [V, D]. On a mesh: width whole, batch split; XLA would split the width of all."""
  mesh = jax.sharding.get_abstract_mesh()
  if not {"data", "fsdp"} <= set(mesh.axis_names) or mesh.manual_axes:
    return table[tokens]
  rows = ("data", "fsdp") if len(tokens) % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else None
  x = jax.lax.with_sharding_constraint(table, jax.P(jax.P.UNCONSTRAINED, None))[tokens]
  return jax.lax.with_sharding_constraint(x, jax.P(rows))


def _check(config):
  dtypes = ("float32", "bfloat16")
  choices = dict(activation=ACTIVATIONS, remat=_REMAT, dtype=dtypes, param_dtype=dtypes)
  choices |= dict(kind=("llama", "gpt2"), attention=("xla", "cudnn"))
  choices |= dict(rope_scaling=("none", "linear", "llama3"), weights=("float", "int8"))
  for name, allowed in choices.items():
    if config[name] not in allowed:
      raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {config[name]!r}")
  if config.heads % config.kv_heads:
    raise ValueError(f"heads ({config.heads}) must be a multiple of kv_heads ({config.kv_heads})")
  if config.lora_rank and config.weights == "int8":
    raise ValueError("lora_rank needs weights 'float', for its gradients pass through them")
  if config.head_dim % 2:
    raise ValueError(f"head_dim must be even, for rotations, got {config.head_dim}")
  if (
    config.sliding_pattern or config.full_layers or config.rope_local_theta
  ) and not config.sliding_window:
    raise ValueError("sliding_pattern, full_layers and rope_local_theta need a sliding_window")
  if config.attention == "cudnn" and config.attention_softcap:
    raise ValueError("attention_softcap needs attention 'xla', got 'cudnn'")
