"""Weights and scores of tokens or documents. They multiply any per-position loss; none has a
gradient.
"""

import jax
import jax.numpy as jnp

from distill_jax.losses.divergences import generalized_js
from distill_jax.losses.log_probs import entropy
from distill_jax.losses.sparse import top_k_divergence


def normalized_entropy(logits: jax.Array) -> jax.Array:
  """Entropy of softmax(logits) over log V, in [0, 1]: [..., V] -> [...]."""
  return entropy(jax.lax.stop_gradient(logits)) / jnp.log(logits.shape[-1])


def normalized_js(
  student_logits: jax.Array, teacher_logits: jax.Array, *, top_k: int | None = None
) -> jax.Array:
  """Jensen-Shannon divergence over log 2, in [0, 1], on the teacher's `top_k` ids if given."""
  student_logits = jax.lax.stop_gradient(student_logits)
  if top_k is None:
    value = generalized_js(student_logits, teacher_logits)
  else:
    value = top_k_divergence(generalized_js, student_logits, teacher_logits, k=top_k, rest="drop")
  return value / jnp.log(2.0)


def tip_weights(
  entropy_score: jax.Array,
  divergence_score: jax.Array,
  *,
  entropy_power: float = 1.0,
  divergence_power: float = 0.0,
) -> jax.Array:
  """H^a J^g, the importance of a token by its entropy and its divergence from the teacher.

  TIP (token importance in on-policy distillation), after the authors' code: scores from
  `normalized_entropy` of the student and `normalized_js`, each at least 1e-8. The method keeps a
  share of the tokens drawn in proportion to the weight, see `sample_tokens`.
  """
  h, j = jnp.maximum(entropy_score, 1e-8), jnp.maximum(divergence_score, 1e-8)
  return h**entropy_power * j**divergence_power


def sample_tokens(key: jax.Array, weights: jax.Array, *, keep: int) -> jax.Array:
  """bool mask of `keep` tokens drawn without replacement in proportion to `weights`.

  Tokens of weight 0 are never drawn. By the Gumbel top-k trick (Kool et al., arXiv:1903.06059).

  Args:
    weights: [N], not negative.
  """
  scores = jnp.log(weights) + jax.random.gumbel(key, weights.shape, weights.dtype)
  _, drawn = jax.lax.top_k(scores, keep)
  return jnp.zeros(weights.shape, bool).at[drawn].set(True) & (weights > 0)


def top_entropy(values: jax.Array, *, share: float, where: jax.Array) -> jax.Array:
  """bool mask of the tokens whose entropy is in the top `share` of those that count.

  Wang et al., Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement
  Learning for LLM Reasoning (arXiv:2506.01939).
  """
  where = where.astype(bool)
  threshold = jnp.nanquantile(jnp.where(where, values, jnp.nan), 1 - share)
  return where & (values >= threshold)


def entropy_gate(logits: jax.Array, *, threshold: float) -> jax.Array:
  """1 where the entropy of softmax(logits) exceeds `threshold` nats, else 0: [..., V] -> [...].

  With the teacher's logits, reverse KL plus the gate times forward KL is entropy-aware on-policy
  distillation (arXiv:2603.07079, from its abstract).
  """
  high = entropy(jax.lax.stop_gradient(logits))
  return (high > threshold).astype(high.dtype)


def balance_weights(
  student_logits: jax.Array, teacher_logits: jax.Array, *, factor: float = 2.0
) -> tuple[jax.Array, jax.Array]:
  """Weights of forward and reverse KL: `factor` on the side whose argument is the more uncertain.

  Forward KL weighs `factor` where the teacher's entropy is the higher, reverse KL where the
  student's is; otherwise 1.

  Amara, Sepahvand, Meyer, Gross, Clark, BD-KD: Balancing the Divergences for Online Knowledge
  Distillation (arXiv:2212.12965).
  """
  h_s, h_t = (entropy(jax.lax.stop_gradient(x)) for x in (student_logits, teacher_logits))
  return jnp.where(h_t > h_s, factor, 1.0), jnp.where(h_s > h_t, factor, 1.0)


def clipped_importance(
  log_probs: jax.Array, old_log_probs: jax.Array, *, cap: float, bound: float = 20.0
) -> jax.Array:
  """min(pi / pi_old, cap), the log-ratio first clipped to +-`bound`."""
  log_ratio = jax.lax.stop_gradient(log_probs - old_log_probs)
  return jnp.minimum(jnp.exp(jnp.clip(log_ratio, -bound, bound)), cap)


def mixture_importance(
  student_log_probs: jax.Array, teacher_log_probs: jax.Array, *, teacher_share: float
) -> jax.Array:
  """q / ((1 - a) q + a p) of tokens drawn from the mixture with share a of the teacher.

  MiniLLM (arXiv:2306.08543), section 2.2, per token.
  """
  log_mix = jnp.logaddexp(
    jnp.log1p(-teacher_share) + student_log_probs, jnp.log(teacher_share) + teacher_log_probs
  )
  return jnp.exp(jax.lax.stop_gradient(student_log_probs - log_mix))


def prefix_weights(
  advantages: jax.Array, *, strength: float = 0.5, where: jax.Array, epsilon: float = 1e-8
) -> jax.Array:
  """1 + strength (1 - sum_{i<t} |A_i| / sum_i |A_i|): early tokens, which later ones build on,
  weigh more. [..., T] -> [..., T].

  Importance-weighted on-policy distillation (IW-OPD), as in TRL.
  """
  size = jnp.where(where.astype(bool), jnp.abs(jax.lax.stop_gradient(advantages)), 0.0)
  before = jnp.cumsum(size, axis=-1) - size
  total = jnp.sum(size, axis=-1, keepdims=True)
  return 1 + strength * (1 - before / jnp.maximum(total, epsilon))


def difference_score(teacher_loss: jax.Array, reference_loss: jax.Array) -> jax.Array:
  """Loss of a small reference model minus the teacher's: high on text that is worth learning.

  Gu, Zhou, Meng, Zhou, Huang, MiniPLM: Knowledge Distillation for Pre-Training Language Models
  (arXiv:2410.17215), eq. 4; per document, in nats per token.
  """
  return reference_loss - teacher_loss


def keep_top(scores: jax.Array, *, keep: int) -> jax.Array:
  """Indices of the `keep` highest scores, in their original order: [N] -> int[keep]."""
  return jnp.sort(jax.lax.top_k(scores, keep)[1])
