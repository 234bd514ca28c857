"""Policy-gradient losses and the advantages that teachers give.

Losses return one number per token, [..., T], to be minimised; `reduce.py` and `sequences.py` take
the means, by token or by sequence first. log_ratio is log pi - log pi_old of the sampled token.
Advantages carry no gradient.
"""

import jax
import jax.numpy as jnp

from distill_jax.losses.log_probs import log_softmax
from distill_jax.losses.reduce import masked_mean


def clipped_surrogate(
  log_ratio: jax.Array,
  advantages: jax.Array,
  *,
  low: float = 0.2,
  high: float = 0.2,
  cap: float | None = None,
  dual: float | None = None,
) -> jax.Array:
  """max(-A r, -A clip(r, 1 - low, 1 + high)) with r = exp(log_ratio).

  Schulman et al., Proximal Policy Optimization Algorithms (arXiv:1707.06347), eq. 7; with high >
  low the clip-higher of DAPO (arXiv:2503.14476); with a sequence's mean log-ratio, GSPO
  (arXiv:2507.18071).

  Args:
    cap: the unclipped r is at most this (two-sided clipping, INTELLECT-2, arXiv:2505.07291).
    dual: where A < 0 the loss is at most -dual A (Ye et al., arXiv:1912.09729).
  """
  advantages = jax.lax.stop_gradient(advantages)
  ratio = jnp.exp(log_ratio)
  clipped = jnp.clip(ratio, 1 - low, 1 + high)
  ratio = ratio if cap is None else jnp.minimum(ratio, cap)
  loss = jnp.maximum(-advantages * ratio, -advantages * clipped)
  if dual is None:
    return loss
  return jnp.where(advantages < 0, jnp.minimum(loss, -advantages * dual), loss)


def weighted_log_prob(log_probs: jax.Array, weights: jax.Array, advantages: jax.Array) -> jax.Array:
  """-w A log pi: REINFORCE with importance weights that carry no gradient.

  With w = min(r, cap), or r clipped on both sides, it is CISPO (MiniMax-M1, arXiv:2506.13585).
  """
  return -jax.lax.stop_gradient(weights * advantages) * log_probs


def soft_clip(
  log_ratio: jax.Array,
  advantages: jax.Array,
  *,
  positive: float = 1.0,
  negative: float = 1.05,
) -> jax.Array:
  """-A (4 / t) sigmoid(t (r - 1)), t = `positive` where A > 0 and `negative` elsewhere.

  Soft Adaptive Policy Optimization (SAPO, arXiv:2511.20347).
  """
  advantages = jax.lax.stop_gradient(advantages)
  t = jnp.where(advantages > 0, positive, negative)
  return -advantages * 4 / t * jax.nn.sigmoid(t * (jnp.exp(log_ratio) - 1))


def gamma_weights(
  log_ratio: jax.Array,
  advantages: jax.Array,
  *,
  where: jax.Array,
  positive: tuple[float, float] = (2.0, 3.0),
  negative: tuple[float, float] = (3.0, 2.0),
) -> jax.Array:
  """w^k exp(l (1 - w)) of each sequence, w its importance ratio: 1 at w = 1, small far from it.

  Variational sequence-level soft policy optimisation (VESPO), as in TRL; a weight for
  `weighted_log_prob`.

  Args:
    log_ratio: [..., T].
    advantages: [..., 1] or [..., T].
    positive, negative: (k, l) where A >= 0 and where A < 0.
  """
  log_ratio = jnp.clip(jax.lax.stop_gradient(log_ratio), -20.0, 20.0)
  total = jnp.sum(jnp.where(where.astype(bool), log_ratio, 0.0), axis=-1, keepdims=True)
  log_w = jnp.clip(total, jnp.log(1e-8), 20.0)
  k, rate = (jnp.where(advantages >= 0, p, n) for p, n in zip(positive, negative, strict=True))
  return jnp.exp(k * log_w + rate * (1 - jnp.exp(log_w)))


def sequence_log_ratio(log_ratio: jax.Array, *, where: jax.Array) -> jax.Array:
  """Mean log-ratio of a sequence, [..., T] -> [..., 1]: GSPO (arXiv:2507.18071), eq. 7."""
  return masked_mean(log_ratio, where, axis=-1)[..., None]


def token_level(sequence: jax.Array, log_probs: jax.Array) -> jax.Array:
  """The value of the sequence's log-ratio with the gradient of each token's log-probability.

  GSPO-token (arXiv:2507.18071), eq. 14: [..., 1] and [..., T] -> [..., T].
  """
  return jax.lax.stop_gradient(sequence) + log_probs - jax.lax.stop_gradient(log_probs)


def off_policy_mask(
  log_ratio: jax.Array, advantages: jax.Array, *, threshold: float, where: jax.Array
) -> jax.Array:
  """bool[..., 1]: sequences with A >= 0, or whose mean log pi_old - log pi is at most `threshold`.

  DeepSeek-V3.2 (arXiv:2512.02556), off-policy sequence masking.
  """
  drift = -sequence_log_ratio(jax.lax.stop_gradient(log_ratio), where=where)
  return (advantages >= 0) | (drift <= threshold)


def k3(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  """p / q - 1 - log(p / q) of a token drawn from q: an unbiased, non-negative estimate of KL(q ||
  p).

  Schulman, Approximating KL Divergence (2020).
  """
  log_ratio = log_p - log_q
  return jnp.expm1(log_ratio) - log_ratio


def sampled_kl(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
  """A surrogate for KL(q || p) on a token drawn from q: stop_gradient(log q - log p) log q.

  Its gradient is the score-function estimate; its value means nothing. The sampled-token form of
  on-policy self-distillation (SDPO, arXiv:2601.20802).
  """
  return jax.lax.stop_gradient(log_q - log_p) * log_q


def expected_value(
  student_logits: jax.Array, values: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
  """sum_v q(v) values(v), the exact expectation under the student: [..., V] -> [...].

  With the DPO teacher's log(p_dpo / p_ref) as values, minus this is ADPA's loss (Gao et al.,
  Advantage-Guided Distillation for Preference Alignment in Small Language Models,
  arXiv:2502.17927).
  """
  values = jax.lax.stop_gradient(values)
  if where is not None:
    student_logits, values = (jnp.where(where[..., None], x, 0.0) for x in (student_logits, values))
  expectation = jnp.sum(jnp.exp(log_softmax(student_logits)) * values, axis=-1)
  return expectation if where is None else jnp.where(where, expectation, 0.0)


def acceptance_reward(student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
  """1 where p > q, else 0, for every id: [..., V] -> [..., V], without gradient.

  Minus its `expected_value` has the gradient of the total variation distance (Goel et al., Direct
  Alignment of Draft Model for Speculative Decoding with Chat-Fine-Tuned LLMs, arXiv:2403.00858).
  """
  log_q, log_p = log_softmax(student_logits), log_softmax(teacher_logits)
  return jax.lax.stop_gradient((log_p > log_q).astype(log_q.dtype))


def normalize_reward(
  student_logits: jax.Array, reward: jax.Array, *, where: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(reward - mean) / deviation, both under the student over all tokens that count: TVD++.

  Goel et al. (arXiv:2403.00858); the paper estimates mean and deviation from sampled tokens, here
  they are exact. The loss is minus the `expected_value` of what this returns.

  Returns:
    The normalised reward [..., V], the mean and the deviation (scalars). Without gradient.
  """
  student_logits = jax.lax.stop_gradient(student_logits)
  mean = masked_mean(expected_value(student_logits, reward, where=where), where)
  square = masked_mean(
    expected_value(student_logits, jnp.square(reward - mean), where=where), where
  )
  deviation = jnp.sqrt(square)
  return (reward - mean) / jnp.where(deviation > 0, deviation, 1.0), mean, deviation


def distillation_advantage(
  teacher_log_probs: jax.Array,
  old_log_probs: jax.Array,
  base_log_probs: jax.Array | None = None,
  *,
  strength: float = 1.0,
) -> jax.Array:
  """strength (log p - log base) - (log pi_old - log base) of the sampled tokens.

  strength = 1 is on-policy distillation, log p - log pi_old, whatever the base; above 1 the student
  is pushed past the teacher (ExOPD). Generalized on-policy distillation (G-OPD, arXiv:2602.12125).
  """
  if base_log_probs is None or strength == 1:
    return jax.lax.stop_gradient(teacher_log_probs - old_log_probs)
  gain = strength * (teacher_log_probs - base_log_probs)
  return jax.lax.stop_gradient(gain - (old_log_probs - base_log_probs))


def reweight_advantages(
  advantages: jax.Array,
  log_ratio: jax.Array,
  *,
  sign: jax.Array,
  mix: float,
  clip: float,
  bound: float = 20.0,
) -> jax.Array:
  """A [(1 - mix) + mix clip(exp(sign log_ratio), 1 - clip, 1 + clip)].

  A teacher's view of a token moves the credit it gets, not its sign. RLSD takes log p_teacher - log
  q and the sign of each token's advantage; CEPO takes log p(with the good hint) - log p(with the
  bad one) and the sign of the sequence's total advantage.

  Args:
    sign: -1, 0 or 1, broadcasts to the advantages.
    bound: the exponent is clipped to +-bound.
  """
  weight = jnp.clip(jnp.exp(jnp.clip(sign * log_ratio, -bound, bound)), 1 - clip, 1 + clip)
  return jax.lax.stop_gradient(advantages * ((1 - mix) + mix * weight))
