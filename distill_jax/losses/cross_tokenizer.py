"""Distillation between vocabularies that do not match: sorted probabilities and matched ids."""

import jax
import jax.numpy as jnp

from distill_jax.losses.log_probs import kl_terms, log_softmax


def sorted_l1(student_probs: jax.Array, teacher_probs: jax.Array) -> jax.Array:
  """sum_i |q_(i) - p_(i)|, both sorted in falling order and padded with zeros to one length.

  Boizard, El Haddad, Hudelot, Colombo, Towards Cross-Tokenizer Distillation: the Universal Logit
  Distillation Loss for LLMs (ULD, arXiv:2402.12030), eq. 3: the 1-Wasserstein distance when all ids
  are equally far apart.

  Args:
    student_probs, teacher_probs: [..., V] and [..., V'], without gradient into the teacher.

  Returns:
    [...].
  """
  width = max(student_probs.shape[-1], teacher_probs.shape[-1])

  def prepare(x):
    x = -jnp.sort(-x, axis=-1)
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])

  q, p = prepare(student_probs), prepare(jax.lax.stop_gradient(teacher_probs))
  return jnp.sum(jnp.abs(q - p), axis=-1)


def uld(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  student_temperature: float = 1.0,
  teacher_temperature: float = 1.0,
  where: jax.Array | None = None,
) -> jax.Array:
  """`sorted_l1` of the softmaxes at positions that are aligned: [..., V], [..., V'] -> [...].

  Args:
    where: bool[...], the positions that count; the others return 0 and pass no gradient.
  """
  if where is not None:
    student_logits, teacher_logits = (
      jnp.where(where[..., None], x, 0.0) for x in (student_logits, teacher_logits)
    )
  q = jnp.exp(log_softmax(student_logits, temperature=student_temperature))
  p = jnp.exp(log_softmax(teacher_logits, temperature=teacher_temperature))
  distance = sorted_l1(q, p)
  return distance if where is None else jnp.where(where, distance, 0.0)


def merge_groups(
  probs: jax.Array,
  ids: jax.Array,
  groups: jax.Array,
  *,
  count: int,
  base: str = "last",
  floor: float = 1e-8,
) -> jax.Array:
  """One distribution for each group of tokens that together spell what the other side spells.

  The distribution of the group's base position times the probabilities of the actual tokens at its
  other positions (each at least `floor`); not normalised, exact for the tokens that were read. An
  empty group is all zeros.

  GOLD (Hugging Face, 2025) as in TRL, with its two strategies: "last" (bayesian), and "first"
  (observed).

  Args:
    probs: [T, V], the distribution of each token.
    ids: int[T], the tokens themselves.
    groups: int[T], rising, from 0; tokens of no group have an index >= count.
    count: how many groups are returned.

  Returns:
    [count, V].
  """
  if base not in ("first", "last"):
    raise ValueError(f'base must be "first" or "last", got {base!r}')
  member = groups[None] == jnp.arange(count)[:, None]  # [count, T]
  position = jnp.arange(groups.shape[0])
  if base == "first":
    at = jnp.argmax(member, axis=-1)
  else:
    at = jnp.max(jnp.where(member, position, 0), axis=-1)
  picked = jnp.take_along_axis(probs, ids[:, None], axis=-1)[:, 0]
  others = member & (position[None] != at[:, None])
  factor = jnp.prod(jnp.where(others, jnp.maximum(picked, floor), 1.0), axis=-1)
  return jnp.where(jnp.any(member, axis=-1)[:, None], probs[at] * factor[:, None], 0.0)


def measure_js(
  student_probs: jax.Array, teacher_probs: jax.Array, *, beta: float = 0.5, floor: float = 1e-8
) -> jax.Array:
  """Generalised JS of two measures that need not sum to 1, each entry at least `floor`.

  beta sum p log(p/m) + (1 - beta) sum q log(q/m), m = beta p + (1 - beta) q; beta = 0 and 1 stand
  for sum p log(p/q) and sum q log(q/p). As GOLD uses it on the ids that two vocabularies share: on
  parts of distributions it can be negative.

  Args:
    student_probs, teacher_probs: [..., K], without gradient into the teacher.
  """
  q = jnp.maximum(student_probs, floor)
  p = jnp.maximum(jax.lax.stop_gradient(teacher_probs), floor)
  log_q, log_p = jnp.log(q), jnp.log(p)
  if beta == 0:
    return jnp.sum(kl_terms(log_p, log_q), axis=-1)
  if beta == 1:
    return jnp.sum(kl_terms(log_q, log_p), axis=-1)
  log_m = jnp.log(beta * p + (1 - beta) * q)
  return jnp.sum(beta * kl_terms(log_p, log_m) + (1 - beta) * kl_terms(log_q, log_m), axis=-1)


def hybrid_uld(
  student_probs: jax.Array,
  teacher_probs: jax.Array,
  student_ids: jax.Array,
  teacher_ids: jax.Array,
  *,
  beta: float = 0.5,
  matched_weight: float | None = None,
  unmatched_weight: float | None = None,
  floor: float = 1e-8,
) -> jax.Array:
  """`measure_js` on the ids that both vocabularies have, `sorted_l1` on the others: GOLD, in TRL.

  Args:
    student_probs, teacher_probs: [..., V] and [..., V'].
    student_ids, teacher_ids: int[K], the same strings in both vocabularies.
    matched_weight, unmatched_weight: by default K / V' and 1 - K / V'.

  Returns:
    [...].
  """
  share = len(teacher_ids) / teacher_probs.shape[-1]
  matched_weight = share if matched_weight is None else matched_weight
  unmatched_weight = 1 - share if unmatched_weight is None else unmatched_weight
  matched = measure_js(
    student_probs[..., student_ids], teacher_probs[..., teacher_ids], beta=beta, floor=floor
  )
  rest = sorted_l1(_without(student_probs, student_ids), _without(teacher_probs, teacher_ids))
  return matched_weight * matched + unmatched_weight * rest


def _without(probs: jax.Array, ids: jax.Array) -> jax.Array:
  """Matched ids at 0: sorted in falling order they come last, as padding does."""
  return probs.at[..., ids].set(0.0)
