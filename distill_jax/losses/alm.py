"""Approximate likelihood matching: two tokenizers compared by the likelihood of the same text.

Minixhofer, Vulic, Ponti, Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching
(arXiv:2503.20083). Both sides give each chunk of text a log-likelihood; a divergence between the
two Bernoulli variables "this chunk comes next, or not" is minimised. `temperature` divides the
log-likelihoods, `epsilon` keeps them below 0. No gradient flows into the teacher.
"""

import jax
import jax.numpy as jnp


def chunk_log_likelihoods(
  token_log_probs: jax.Array,
  alignment: jax.Array,
  *,
  next_log_probs: jax.Array | None = None,
) -> jax.Array:
  """log-likelihood of each chunk, the sum of its tokens', at most 0.

  Args:
    token_log_probs: [..., T], the log-probability of each token given those before it; 0 for the
      first token, which nothing predicts.
    alignment: bool[..., T, C], which tokens make up which chunk.
    next_log_probs: [..., T], the log-probability, after each token, that a new word begins: that of
      the last token of a chunk is added, for a chunk is complete only when nothing continues it.

  Returns:
    [..., C]; 0 for a chunk without tokens.
  """
  chunk = jnp.einsum("...t,...tc->...c", token_log_probs, alignment.astype(token_log_probs.dtype))
  chunk = jnp.minimum(chunk, 0.0)
  if next_log_probs is None:
    return chunk
  length = alignment.shape[-2]
  last = length - 1 - jnp.argmax(jnp.flip(alignment, axis=-2), axis=-2)
  boundary = jnp.take_along_axis(jnp.minimum(next_log_probs, 0.0), last, axis=-1)
  return chunk + jnp.where(jnp.any(alignment, axis=-2), boundary, 0.0)


def numbered_chunk_log_likelihoods(
  token_log_probs: jax.Array,
  chunks: jax.Array,
  *,
  count: int,
  next_log_probs: jax.Array | None = None,
) -> jax.Array:
  """`chunk_log_likelihoods` with the number of its chunk for each token, in place of a matrix.

  Args:
    token_log_probs, next_log_probs: [B, T].
    chunks: int[B, T]; the tokens of a chunk follow each other. Tokens of another number than 0 to
      count - 1 belong to none.
    count: how many chunks are returned.

  Returns:
    [B, count]; 0 for a chunk without tokens.
  """
  total = jax.vmap(lambda x, ids: jax.ops.segment_sum(x, ids, count))
  likelihoods = jnp.minimum(total(token_log_probs, chunks), 0.0)
  if next_log_probs is None:
    return likelihoods
  last = jnp.pad(chunks[:, 1:] != chunks[:, :-1], ((0, 0), (0, 1)), constant_values=True)
  return likelihoods + total(jnp.where(last, jnp.minimum(next_log_probs, 0.0), 0.0), chunks)


def merge_chunks(chunks: jax.Array, ends: jax.Array) -> jax.Array:
  """Chunk numbers after each chunk whose end does not count was joined with the one that follows.

  As tokenkit, the authors' code, joins those after which the teacher gives a new word less than a
  threshold: a tokenizer whose words go on there would spell them otherwise.

  Args:
    chunks: int[B, T], numbers of tokens; those outside 0 to C - 1 stay.
    ends: bool[B, C], which chunks end a joined one.

  Returns:
    int[B, T], rising by 1 from one joined chunk to the next.
  """
  count = ends.shape[1]
  before = jnp.cumsum(ends, axis=1) - ends
  joined = jnp.take_along_axis(before, jnp.clip(chunks, 0, count - 1), axis=1)
  return jnp.where((chunks >= 0) & (chunks < count), joined, chunks).astype(chunks.dtype)


def binary_cross_entropy(
  student: jax.Array, teacher: jax.Array, *, temperature: float = 1.0, epsilon: float = 1e-6
) -> jax.Array:
  """-[t log s + (1 - t) log(1 - s)], t = exp(teacher / temperature), s likewise: eq. 6 of the
  paper.
  """
  s, t = _scaled(student, teacher, temperature, epsilon)
  return -(jnp.exp(t) * s - jnp.expm1(t) * log1mexp(s))


def reverse_binary_kl(
  student: jax.Array, teacher: jax.Array, *, temperature: float = 1.0, epsilon: float = 1e-6
) -> jax.Array:
  """s log(s/t) + (1 - s) log((1 - s)/(1 - t))."""
  s, t = _scaled(student, teacher, temperature, epsilon)
  return jnp.exp(s) * (s - t) - jnp.expm1(s) * (log1mexp(s) - log1mexp(t))


def binary_kl_limit(student: jax.Array, teacher: jax.Array, *, epsilon: float = 1e-6) -> jax.Array:
  """(t - s) + t log(s / t) on log-likelihoods: temperature times the binary KL as that grows."""
  s, t = _scaled(student, teacher, 1.0, epsilon)
  return t - s + t * (jnp.log(-s) - jnp.log(-t))


def renyi(
  student: jax.Array, teacher: jax.Array, *, alpha: float = 2.0, epsilon: float = 1e-6
) -> jax.Array:
  """log[t^a s^(1-a) + (1-t)^a (1-s)^(1-a)] / (a - 1)."""
  s, t = _scaled(student, teacher, 1.0, epsilon)
  inside = alpha * t + (1 - alpha) * s
  outside = alpha * log1mexp(t) + (1 - alpha) * log1mexp(s)
  return jnp.logaddexp(inside, outside) / (alpha - 1)


def absolute(
  student: jax.Array, teacher: jax.Array, *, temperature: float = 1.0, epsilon: float = 1e-6
) -> jax.Array:
  """|t - s| of the probabilities exp(log-likelihood / temperature)."""
  s, t = _scaled(student, teacher, temperature, epsilon)
  return jnp.abs(jnp.exp(t) - jnp.exp(s))


def absolute_log(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """|t - s| of the log-likelihoods."""
  return jnp.abs(jax.lax.stop_gradient(teacher) - student)


def squared_log(student: jax.Array, teacher: jax.Array, *, temperature: float = 1.0) -> jax.Array:
  """(t - s)^2 / 2 of the log-likelihoods over the temperature. For its k3 kin see `policy.k3`."""
  return jnp.square((jax.lax.stop_gradient(teacher) - student) / temperature) / 2


def log1mexp(x: jax.Array) -> jax.Array:
  """log(1 - exp(x)) for x < 0, accurate near 0 and far from it."""
  near = x > -jnp.log(2.0)
  return jnp.where(
    near,
    jnp.log(-jnp.expm1(jnp.where(near, x, -1.0))),
    jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))),
  )


def _scaled(student, teacher, temperature, epsilon):
  return tuple(x / temperature - epsilon for x in (student, jax.lax.stop_gradient(teacher)))
