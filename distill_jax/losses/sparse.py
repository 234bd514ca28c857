"""Divergences on a few ids per position: top-k teachers, cached teachers, sampled teachers.

All of them share one representation: log-probabilities on K ids and, as a further "id", what the
ids leave over (the tail). It is an ordinary distribution over K + 1 outcomes, so that every
divergence of this package takes it as it is.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from distill_jax.losses.log_probs import kl, log_softmax


def gather(
  logits: jax.Array,
  ids: jax.Array,
  *,
  valid: jax.Array | None = None,
  temperature: float | jax.Array = 1.0,
) -> jax.Array:
  """log softmax(logits / temperature) over the whole vocabulary, at `ids`.

  Args:
    logits: [..., V].
    ids: int[..., K].
    valid: bool[..., K]; the others (padding, duplicates) become -inf.

  Returns:
    [..., K], not normalised over the ids.
  """
  picked = jnp.take_along_axis(log_softmax(logits, temperature=temperature), ids, axis=-1)
  return picked if valid is None else jnp.where(valid, picked, -jnp.inf)


def with_tail(log_probs: jax.Array, *, floor: float = 1e-7) -> jax.Array:
  """Appends log(1 - sum of probabilities): [..., K] -> [..., K + 1].

  The tail is at least about `floor`: nearer to 1 the sum of float32 probabilities means nothing.
  Where the floor holds, no gradient flows through the tail.
  """
  total = jnp.minimum(jax.nn.logsumexp(log_probs, axis=-1, keepdims=True), -floor)
  return jnp.concatenate([log_probs, jnp.log(-jnp.expm1(total))], axis=-1)


def union(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The ids of both sets: int[..., K], int[..., L] -> int[..., K + L] and which are no repeats."""
  repeated = jnp.any(second[..., :, None] == first[..., None, :], axis=-1)
  valid = jnp.concatenate([jnp.ones(first.shape, bool), ~repeated], axis=-1)
  return jnp.concatenate([first, second], axis=-1), valid


def cached_divergence(
  divergence: Callable[..., jax.Array],
  student_logits: jax.Array,
  ids: jax.Array,
  teacher_log_probs: jax.Array,
  *,
  rest: str = "tail",
  valid: jax.Array | None = None,
  temperature: float | jax.Array = 1.0,
  floor: float = 1e-7,
  where: jax.Array | None = None,
) -> jax.Array:
  """A divergence between the student and a teacher of which only K log-probabilities are known.

  What becomes of the mass outside the ids:
    - "tail": one more outcome holds it, for both. At temperature T the teacher's tail is tempered
      as if it were one id.
    - "zero": the teacher has none; what it has on the ids is normalised. The student keeps its own.
    - "drop": both are normalised over the ids, as FIRST does (arXiv:2408.12168) with its top 5. The
      divergence is biased low, and the student's mass outside the ids is free.

  Args:
    divergence: (student_logits [..., K'], teacher_logits [..., K'], where=...) -> [...].
    student_logits: [..., V].
    ids: int[..., K], different from each other where valid.
    teacher_log_probs: [..., K], at temperature 1, normalised over the vocabulary ("tail") or up to
      a constant ("zero", "drop").
    valid: bool[..., K], None for all.
    temperature: of both sides.
    floor: see `with_tail`.
    where: bool[...], the positions that count; the others return 0 and pass no gradient.
  """
  if where is not None:
    student_logits = jnp.where(where[..., None], student_logits, 0.0)
    teacher_log_probs = jnp.where(where[..., None], teacher_log_probs, -1e3)
  if valid is not None:
    teacher_log_probs = jnp.where(valid, teacher_log_probs, -jnp.inf)
  student = gather(student_logits, ids, valid=valid, temperature=temperature)
  teacher = teacher_log_probs.astype(student.dtype)
  if rest == "tail":
    teacher = with_tail(teacher, floor=floor) / temperature
  elif rest == "zero":
    none = jnp.full_like(teacher[..., :1], -jnp.inf)
    teacher = jnp.concatenate([log_softmax(teacher, temperature=temperature), none], axis=-1)
  elif rest == "drop":
    return divergence(student, teacher / temperature, where=where)
  else:
    raise ValueError(f'rest must be "tail", "zero" or "drop", got {rest!r}')
  return divergence(with_tail(student, floor=floor), teacher, where=where)


def top_k_divergence(
  divergence: Callable[..., jax.Array],
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  k: int,
  support: str = "teacher",
  rest: str = "tail",
  temperature: float = 1.0,
  floor: float = 1e-7,
  where: jax.Array | None = None,
) -> jax.Array:
  """A divergence on the k likeliest ids of the teacher, of the student, or of either.

  Args:
    student_logits, teacher_logits: [..., V].
    support: "teacher", "student" or "union".
    rest: "tail" or "drop", see `cached_divergence`.
  """
  teacher = jax.lax.stop_gradient(log_softmax(teacher_logits, temperature=temperature))
  student = student_logits / temperature
  top_t = jax.lax.top_k(teacher, k)[1]
  top_s = jax.lax.top_k(jax.lax.stop_gradient(student), k)[1]
  valid = None
  if support == "union":
    ids, valid = union(top_t, top_s)
  else:
    ids = {"teacher": top_t, "student": top_s}[support]
  log_p = jnp.take_along_axis(teacher, ids, axis=-1)
  return cached_divergence(
    divergence, student, ids, log_p, rest=rest, valid=valid, floor=floor, where=where
  )


def decoupled_top_k(
  student_logits: jax.Array,
  ids: jax.Array,
  teacher_log_probs: jax.Array,
  *,
  temperature: float = 1.0,
  floor: float = 1e-7,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The parts of KL(Bernoulli(P) || Bernoulli(Q)) + P KL_T(p on the ids || q on the ids).

  P and Q are the masses on the ids at temperature 1; T acts on the conditional distributions alone,
  where it cannot blow up the tail. At T = 1 the sum is the KL divergence with a tail.

  LFM2 Technical Report (arXiv:2511.23404), from its description; no code is published, and whether
  it multiplies by T^2 is not known: here it does not.

  Args:
    student_logits: [..., V].
    ids: int[..., K]; teacher_log_probs: [..., K], normalised over the vocabulary.

  Returns:
    The Bernoulli term, P, and the conditional term, [...] each: the loss is a + P c.
  """
  student, teacher = gather(student_logits, ids), jax.lax.stop_gradient(teacher_log_probs)

  def split(log_x):
    tailed = with_tail(log_x, floor=floor)
    inside = jax.nn.logsumexp(log_x, axis=-1)
    return jnp.stack([inside, tailed[..., -1]], axis=-1), log_softmax(
      log_x, temperature=temperature
    )

  (binary_q, inner_q), (binary_p, inner_p) = split(student), split(teacher)
  return kl(binary_p, binary_q), jnp.exp(binary_p[..., 0]), kl(inner_p, inner_q)


def sample_targets(
  key: jax.Array, teacher_logits: jax.Array, *, samples: int, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
  """Ids drawn from softmax(logits / temperature) and weights that make them stand for the teacher.

  sum_k w_k f(id_k) estimates sum_v p(v) f(v); at temperature 1 every weight is 1 / samples and the
  estimate has no bias. Repeated ids add up.

  Anshumann et al., Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs
  (arXiv:2503.16870).

  Returns:
    int[..., samples] and [..., samples], summing to 1.
  """
  log_p = log_softmax(teacher_logits)
  drawn = jax.random.categorical(
    key, log_p / temperature, axis=-1, shape=(samples, *log_p.shape[:-1])
  )
  ids = jnp.moveaxis(drawn, 0, -1)
  picked = jnp.take_along_axis(log_p, ids, axis=-1)
  return ids, jax.nn.softmax(picked * (1 - 1 / temperature), axis=-1)


def sampled_cross_entropy(
  student_logits: jax.Array,
  ids: jax.Array,
  weights: jax.Array,
  *,
  where: jax.Array | None = None,
) -> jax.Array:
  """-sum_k w_k log q(id_k): the cross-entropy to targets from `sample_targets`, [...] nats.

  Anshumann et al. (arXiv:2503.16870): its gradient is that of forward KL on average over samples.
  """
  if where is not None:
    student_logits = jnp.where(where[..., None], student_logits, 0.0)
  loss = -jnp.sum(weights * gather(student_logits, ids), axis=-1)
  return loss if where is None else jnp.where(where, loss, 0.0)


def cached_log_ratio(
  ids: jax.Array,
  log_probs: jax.Array,
  reference_ids: jax.Array,
  reference_log_probs: jax.Array,
  *,
  missing: jax.Array | None = None,
) -> jax.Array:
  """log p(id) - log p_ref(id) from two caches that hold different ids, [..., K].

  The advantages of ADPA (Gao et al., arXiv:2502.17927), with p the teacher after DPO.

  Args:
    ids, log_probs: [..., K]; reference_ids, reference_log_probs: [..., L].
    missing: [..., 1], the reference's log-probability of ids that it does not hold; None takes the
      smallest that it holds, an upper bound. The authors take the smallest of `log_probs`.
  """
  if missing is None:
    missing = jnp.min(reference_log_probs, axis=-1, keepdims=True)
  same = ids[..., :, None] == reference_ids[..., None, :]
  found = jnp.max(jnp.where(same, reference_log_probs[..., None, :], -jnp.inf), axis=-1)
  return log_probs - jnp.where(jnp.any(same, axis=-1), found, missing)


def sparse_expectation(
  student_logits: jax.Array,
  ids: jax.Array,
  values: jax.Array,
  *,
  clip: float | None = None,
  where: jax.Array | None = None,
) -> jax.Array:
  """sum_k q(id_k) value_k, an expectation under the student of values that are 0 at other ids.

  Minus this is ADPA's loss, with `cached_log_ratio` as values (Gao et al., arXiv:2502.17927).

  Args:
    student_logits: [..., V].
    ids: int[..., K]; values: [..., K], without gradient.
    clip: probabilities and values, of the tail too, are clipped to [clip, 1 - clip], as the
      authors' trainer does with 1e-8: negative values vanish and those above 1 count as 1.
    where: bool[...], the positions that count; the others return 0 and pass no gradient.
  """
  if where is not None:
    student_logits = jnp.where(where[..., None], student_logits, 0.0)
  q = jnp.exp(with_tail(gather(student_logits, ids)))
  values = jnp.pad(jax.lax.stop_gradient(values), [(0, 0)] * (values.ndim - 1) + [(0, 1)])
  if clip is not None:
    q, values = jnp.clip(q, clip, 1 - clip), jnp.clip(values, clip, 1 - clip)
  expectation = jnp.sum(q * values, axis=-1)
  return expectation if where is None else jnp.where(where, expectation, 0.0)


def densify(
  ids: jax.Array,
  log_probs: jax.Array,
  *,
  vocabulary: int,
  fill: float | None = None,
  floor: float = 1e-8,
) -> jax.Array:
  """Log-probabilities over the whole vocabulary from those of a few ids: [..., K] -> [..., V].

  Args:
    fill: the value of all other ids; None spreads what is left of the mass over them evenly, at
      least `floor` each.
  """
  if fill is None:
    left = 1 - jnp.sum(jnp.exp(log_probs), axis=-1, keepdims=True)
    other = jnp.log(jnp.maximum(left / (vocabulary - ids.shape[-1]), floor))
  else:
    other = jnp.full_like(log_probs[..., :1], fill)
  dense = jnp.broadcast_to(other, (*ids.shape[:-1], vocabulary))
  return jnp.put_along_axis(dense, ids, log_probs, axis=-1, inplace=False)
