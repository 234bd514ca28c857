"""Text from a language model: one prefill, then a token a step until every row has stopped."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.models.transformer import Model


class Samples(NamedTuple):
  """Prompt, what was generated directly after it, then zeros; a row of each is a sequence."""

  tokens: jax.Array  # int32 [B, P + N]
  generated: jax.Array  # bool [B, P + N]: this token was sampled
  lengths: jax.Array  # int32 [B]: prompt and generated tokens, the stop token included


def sample(
  model: Model,
  params: dict,
  prompts: jax.Array,
  key: jax.Array,
  *,
  new_tokens: int,
  lengths: jax.Array | None = None,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  stop_tokens: Sequence[int] = (),
) -> Samples:
  """Continues each prompt by at most `new_tokens` tokens; pure, to be called under jit.

  A row ends after a stop token, which is kept. Row i draws from `fold_in(key, i)` alone: the other
  rows and the padding change nothing in it but rounding. No gradient flows into `params`.

  Args:
    prompts: int [B, P], padded on the right.
    key: one key for the batch.
    new_tokens: N, at least 1.
    lengths: int [B], tokens of each prompt, at least 1; all P if None.
    temperature, top_k, top_p: see `filter_logits`; temperature 0 takes the likeliest token.
    stop_tokens: tokens that end a row.

  Raises:
    ValueError: an argument is out of range.
  """
  if new_tokens < 1:
    raise ValueError(f"new_tokens must be at least 1, got {new_tokens}")
  if temperature < 0:
    raise ValueError(f"temperature must be at least 0, got {temperature}")
  params = jax.lax.stop_gradient(params)
  batch, width = prompts.shape
  lengths = jnp.full(batch, width, jnp.int32) if lengths is None else lengths.astype(jnp.int32)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
  stops = jnp.array(stop_tokens, jnp.int32)

  def draw(hidden, t):
    """Tokens [B] after hidden [B, D], the t-th to be generated."""
    logits = model.logits(params, hidden)
    if temperature == 0:
      return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    now = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
    return jax.vmap(jax.random.categorical)(now, logits).astype(jnp.int32)

  def extend(state):
    """Reads token t - 1 of each row into the cache and draws token t."""
    t, new, count, done, cache = state
    last = jax.lax.dynamic_slice_in_dim(new, t - 1, 1, axis=1)
    hidden, cache = model.decode(params, last, cache, (lengths + t - 1)[:, None])
    token = jnp.where(done, 0, draw(hidden[:, 0], t))
    new = jax.lax.dynamic_update_slice_in_dim(new, token[:, None], t, axis=1)
    return t + 1, new, count + ~done, done | jnp.isin(token, stops), cache

  # What a padded prompt leaves in the cache behind its end is overwritten before it is seen.
  positions = jnp.broadcast_to(jnp.arange(width), prompts.shape)
  cache = model.init_cache(batch, width + new_tokens - 1)
  hidden, cache = model.decode(params, prompts, cache, positions)
  last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
  token = draw(last[:, 0], 0)
  new = jnp.zeros((batch, new_tokens), jnp.int32).at[:, 0].set(token)
  state = (1, new, jnp.ones(batch, jnp.int32), jnp.isin(token, stops), cache)
  _, new, count, _, _ = jax.lax.while_loop(
    lambda state: (state[0] < new_tokens) & ~jnp.all(state[3]), extend, state
  )

  place = jnp.arange(width + new_tokens) - lengths[:, None]  # in the generated text, if 0 or more
  generated = (place >= 0) & (place < count[:, None])
  ours = jnp.take_along_axis(new, jnp.clip(place, 0, new_tokens - 1), axis=1)
  prompts = jnp.pad(prompts.astype(jnp.int32), ((0, 0), (0, new_tokens)))
  tokens = jnp.where(place < 0, prompts, jnp.where(generated, ours, 0))
  return Samples(tokens, generated, lengths + count)


def filter_logits(
  logits: jax.Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> jax.Array:
  """Logits / temperature, with -inf for the tokens that top-k, and then top-p, leave out.

  Top-k keeps the k largest. Top-p (the nucleus) keeps the smallest set of likeliest tokens whose
  probabilities, after temperature and top-k, add up to at least p. What is as likely as the last
  token kept is kept too, and one token always is.

  Args:
    logits: [..., V] float.
    temperature: above 0.
    top_k: 0 keeps all.
    top_p: in (0, 1]; 1 keeps all.

  Raises:
    ValueError: an argument is out of range.

  References:
    Holtzman et al., The Curious Case of Neural Text Degeneration (arXiv:1904.09751), eq. 2.
    Fan et al., Hierarchical Neural Story Generation (arXiv:1805.04833), section 5.1: top-k.
  """
  if temperature <= 0:
    raise ValueError(f"temperature must be above 0, got {temperature}")
  if top_k < 0:
    raise ValueError(f"top_k must be at least 0, got {top_k}")
  if not 0 < top_p <= 1:
    raise ValueError(f"top_p must be in (0, 1], got {top_p}")
  logits = logits / temperature
  if top_k > 0:
    logits = _keep_largest(logits, jnp.ones_like(logits), min(top_k, logits.shape[-1]))
  if top_p < 1:
    logits = _keep_largest(logits, jax.nn.softmax(logits, axis=-1), top_p)
  return logits


def _keep_largest(logits, weights, need):
  """The fewest largest logits whose weights add up to `need`, and their equals; -inf elsewhere.

  The smallest logit kept is found bit by bit: 32 sums over the vocabulary, where a sort would be
  many times slower on every backend.
  """
  bits = jax.lax.bitcast_convert_type(logits.astype(jnp.float32), jnp.uint32)
  sign = jnp.uint32(1 << 31)
  order = jnp.where(bits < sign, bits | sign, ~bits)  # unsigned integers in the order of the floats

  def settle(i, least):
    higher = least | (sign >> i.astype(jnp.uint32))
    total = jnp.sum(jnp.where(order >= higher, weights, 0), axis=-1, keepdims=True)
    return jnp.where(total >= need, higher, least)

  least = jax.lax.fori_loop(0, 32, settle, jnp.zeros_like(order[..., :1]))
  return jnp.where(order >= least, logits, -jnp.inf)
