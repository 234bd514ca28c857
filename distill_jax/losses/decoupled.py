"""Knowledge distillation split into the mass of one id and the distribution over the others."""

import jax
import jax.numpy as jnp

from distill_jax.losses.log_probs import kl, log_softmax, pair


def decoupled_kd(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  targets: jax.Array,
  *,
  target_weight: float = 1.0,
  other_weight: float = 0.5,
  temperature: float | jax.Array = 1.0,
  where: jax.Array | None = None,
) -> jax.Array:
  """a KL(Bernoulli(p_y) || Bernoulli(q_y)) + b KL(p without y || q without y), y the target.

  Without T^2. With b = 1 - p_y and a = 1 it is forward KL.

  Zhao, Cui, Song, Qiu, Liang, Decoupled Knowledge Distillation (arXiv:2203.08679), eq. 7, applied
  to each token.

  Args:
    student_logits, teacher_logits: [..., V]; no gradient flows into the teacher.
    targets: int[...], the correct ids; anything at positions that do not count.
    target_weight, other_weight: a and b.
    temperature: divides both logits.
    where: bool[...], the positions that count; the others return 0 and pass no gradient.
  """
  log_q, log_p, counts = pair(student_logits, teacher_logits, temperature=temperature, where=where)
  is_target = jax.nn.one_hot(jnp.where(counts, targets, 0), log_q.shape[-1], dtype=bool)

  def split(log_x):
    others = log_softmax(jnp.where(is_target, -jnp.inf, log_x))
    target = jnp.sum(jnp.where(is_target, log_x, 0.0), axis=-1)
    rest = jax.nn.logsumexp(jnp.where(is_target, -jnp.inf, log_x), axis=-1)
    return jnp.stack([target, rest], axis=-1), others

  (binary_q, others_q), (binary_p, others_p) = split(log_q), split(log_p)
  divergence = target_weight * kl(binary_p, binary_q) + other_weight * kl(others_p, others_q)
  return jnp.where(counts, divergence, 0.0)


def standardize(logits: jax.Array, *, epsilon: float = 1e-7) -> jax.Array:
  """Logits of zero mean and unit (unbiased) standard deviation over the vocabulary, [..., V].

  Sun, Ren, Li, Wang, Cao, Logit Standardization in Knowledge Distillation (arXiv:2403.01427).
  """
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  mean = jnp.mean(logits, axis=-1, keepdims=True)
  return (logits - mean) / (epsilon + jnp.std(logits, axis=-1, ddof=1, keepdims=True))
