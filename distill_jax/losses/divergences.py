"""Divergences between next-token distributions: p is the teacher's, q the student's.

Every function maps two [..., V] logits to [...] nats and shares these rules:

  - `temperature` divides both logits; no T^2 factor is applied (multiply by it where a method wants
    one).
  - Entries of -inf are outside the vocabulary; 0 log 0 = 0. Where the true value is +inf (the
    support of the first argument exceeds that of the second) the value is +inf and the gradient is
    that of the finite terms.
  - Positions with `where` False, or with a row of nothing but -inf, return 0 and pass no gradient.
  - No gradient flows into the teacher. The result is float32, or float64 for float64 logits.
  - ValueError if the two logits differ in shape.
"""

import inspect
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from distill_jax.losses.adaptive_kl import adaptive_kl
from distill_jax.losses.alpha_beta import alpha_beta
from distill_jax.losses.log_probs import kl, kl_terms, mixture, pair


def named(name: str, **hyperparameters) -> Callable[..., jax.Array]:
  """The divergence called `name`, with those of the hyperparameters that it takes.

  Raises:
    ValueError: there is no such divergence; the message lists them.
  """
  known = {f.__name__: f for f in DIVERGENCES}
  if name not in known:
    raise ValueError(f"no divergence {name!r}: {', '.join(sorted(known))}")
  takes = inspect.signature(known[name]).parameters
  return partial(known[name], **{k: v for k, v in hyperparameters.items() if k in takes})


def forward_kl(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  where: jax.Array | None = None,
) -> jax.Array:
  """KL(p || q) = sum_v p (log p - log q): the student covers all of the teacher's modes.

  Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network (arXiv:1503.02531), there as
  cross-entropy, which adds the teacher's entropy: same gradient, other value.
  """
  log_q, log_p, counts = pair(student_logits, teacher_logits, temperature=temperature, where=where)
  return jnp.where(counts, kl(log_p, log_q), 0.0)


def reverse_kl(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  where: jax.Array | None = None,
) -> jax.Array:
  """KL(q || p) = sum_v q (log q - log p): the student settles on modes that the teacher has.

  Gu, Dong, Wei, Huang, MiniLLM: Knowledge Distillation of Large Language Models (arXiv:2306.08543),
  eq. 1, per token.
  """
  log_q, log_p, counts = pair(student_logits, teacher_logits, temperature=temperature, where=where)
  return jnp.where(counts, kl(log_q, log_p), 0.0)


def soft_cross_entropy(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  where: jax.Array | None = None,
) -> jax.Array:
  """-sum_v p log q over the ids that the student has: forward KL plus the teacher's entropy.

  Unlike forward KL it leaves out ids where the student's logit is -inf: what mass the teacher has
  there counts nothing. The code of DistiLLM, MiniPLM and TAID uses this form; it is not 0 at p = q.
  """
  log_q, log_p, counts = pair(student_logits, teacher_logits, temperature=temperature, where=where)
  terms = jnp.exp(log_p) * jnp.where(log_q > -jnp.inf, log_q, 0.0)
  return jnp.where(counts, -jnp.sum(terms, axis=-1), 0.0)


def generalized_js(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  beta: float = 0.5,
  temperature: float | jax.Array = 1.0,
  where: jax.Array | None = None,
) -> jax.Array:
  """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q.

  The limits at both ends are 0; by the paper's convention beta = 0 stands for forward KL and beta =
  1 for reverse KL, the limits of the divergence divided by beta and by 1 - beta.

  Agarwal et al., On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes
  (GKD, arXiv:2306.13649), eq. 1. Libraries differ in which side beta weighs: here the teacher's.

  Raises:
    ValueError: beta is outside [0, 1], or the logits differ in shape.
  """
  terms = generalized_js_terms(
    student_logits, teacher_logits, beta=beta, temperature=temperature, where=where
  )
  return jnp.sum(terms, axis=-1)


def generalized_js_terms(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  beta: float = 0.5,
  temperature: float | jax.Array = 1.0,
  where: jax.Array | None = None,
) -> jax.Array:
  """What each id contributes to `generalized_js`: [..., V], summing to it over the last axis."""
  if not 0 <= beta <= 1:
    raise ValueError(f"beta must be in [0, 1], got {beta}")
  log_q, log_p, counts = pair(student_logits, teacher_logits, temperature=temperature, where=where)
  if beta == 0:
    terms = kl_terms(log_p, log_q)
  elif beta == 1:
    terms = kl_terms(log_q, log_p)
  else:
    log_m = mixture(log_p, log_q, beta)
    terms = beta * kl_terms(log_p, log_m) + (1 - beta) * kl_terms(log_q, log_m)
  return jnp.where(counts[..., None], terms, 0.0)


def skew_forward_kl(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  skew: float | jax.Array = 0.1,
  temperature: float | jax.Array = 1.0,
  where: jax.Array | None = None,
) -> jax.Array:
  """KL(p || a p + (1 - a) q), a = `skew`: at most -log(a), however little mass the student puts
  where the teacher has some.

  Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models
  (arXiv:2402.03898), eq. 5. The authors' code leaves out the teacher's entropy: same gradient,
  other value.

  Args:
    skew: a in [0, 1), a number (0 is forward KL) or an array in (0, 1) that broadcasts to [...].

  Raises:
    ValueError: the number is outside [0, 1), or the logits differ in shape.
  """
  _check_skew(skew)
  log_q, log_p, counts = pair(student_logits, teacher_logits, temperature=temperature, where=where)
  log_m = log_q if _is_zero(skew) else mixture(log_p, log_q, skew)
  return jnp.where(counts, kl(log_p, log_m), 0.0)


def skew_reverse_kl(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  skew: float | jax.Array = 0.1,
  stop_mixture: bool = False,
  temperature: float | jax.Array = 1.0,
  where: jax.Array | None = None,
) -> jax.Array:
  """KL(q || (1 - a) p + a q), a = `skew`: at most -log(a), however little mass the teacher puts
  where the student has some.

  Ko et al., DistiLLM (arXiv:2402.03898), eq. 6.

  Args:
    skew: a in [0, 1), a number (0 is reverse KL) or an array in (0, 1) that broadcasts to [...].
    stop_mixture: no gradient through the mixture, as in the code of DistiLLM-2 (arXiv:2503.07067).
      The value is the same.

  Raises:
    ValueError: the number is outside [0, 1), or the logits differ in shape.
  """
  _check_skew(skew)
  log_q, log_p, counts = pair(student_logits, teacher_logits, temperature=temperature, where=where)
  inner = jax.lax.stop_gradient(log_q) if stop_mixture else log_q
  log_m = log_p if _is_zero(skew) else mixture(inner, log_p, skew)
  return jnp.where(counts, kl(log_q, log_m), 0.0)


def total_variation(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  where: jax.Array | None = None,
) -> jax.Array:
  """1/2 sum_v |p - q|, in [0, 1]: one minus the acceptance rate of speculative decoding.

  Wen et al., f-Divergence Minimization for Sequence-Level Knowledge Distillation
  (arXiv:2307.15190).
  """
  log_q, log_p, counts = pair(student_logits, teacher_logits, temperature=temperature, where=where)
  return jnp.where(counts, jnp.sum(jnp.abs(jnp.exp(log_p) - jnp.exp(log_q)), axis=-1) / 2, 0.0)


def symmetric_kl(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  weight: float = 0.5,
  temperature: float | jax.Array = 1.0,
  where: jax.Array | None = None,
) -> jax.Array:
  """(1 - w) KL(p || q) + w KL(q || p), w = `weight` of the reverse part."""
  log_q, log_p, counts = pair(student_logits, teacher_logits, temperature=temperature, where=where)
  return jnp.where(counts, (1 - weight) * kl(log_p, log_q) + weight * kl(log_q, log_p), 0.0)


def logit_mse(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  where: jax.Array | None = None,
) -> jax.Array:
  """Mean over ids of (z_student - z_teacher)^2, over those that are finite on both sides.

  Kim, Oh, Kim, Cho, Yun, Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in
  Knowledge Distillation (arXiv:2105.08919), eq. 3.
  """
  both = (student_logits > -jnp.inf) & (teacher_logits > -jnp.inf)
  if where is not None:
    both &= where[..., None]
  dtype = jnp.promote_types(jnp.result_type(student_logits, teacher_logits), jnp.float32)
  student, teacher = (jnp.where(both, x, 0).astype(dtype) for x in (student_logits, teacher_logits))
  square = jnp.sum(jnp.square(student - jax.lax.stop_gradient(teacher)), axis=-1)
  return square / jnp.maximum(jnp.sum(both, axis=-1), 1)


def _check_skew(skew: float | jax.Array) -> None:
  if isinstance(skew, (int, float)) and not 0 <= skew < 1:
    raise ValueError(f"skew must be in [0, 1), got {skew}")


def _is_zero(skew: float | jax.Array) -> bool:
  return isinstance(skew, (int, float)) and skew == 0


DIVERGENCES = (
  forward_kl,
  reverse_kl,
  generalized_js,
  skew_forward_kl,
  skew_reverse_kl,
  total_variation,
  symmetric_kl,
  adaptive_kl,
  alpha_beta,
)
