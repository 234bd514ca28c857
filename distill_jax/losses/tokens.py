"""Weights and scores of tokens, to multiply any per-position loss with."""

import jax
import jax.numpy as jnp

from distill_jax.losses.log_probs import entropy


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
  student's is; otherwise 1. No gradient flows through them.

  Amara, Sepahvand, Meyer, Gross, Clark, BD-KD: Balancing the Divergences for Online Knowledge
  Distillation (arXiv:2212.12965).
  """
  h_s, h_t = (entropy(jax.lax.stop_gradient(x)) for x in (student_logits, teacher_logits))
  return jnp.where(h_t > h_s, factor, 1.0), jnp.where(h_s > h_t, factor, 1.0)
