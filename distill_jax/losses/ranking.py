"""Losses on the order in which the teacher ranks a few ids."""

import jax
import jax.numpy as jnp

from distill_jax.losses.sparse import gather


def ranking_hinge(
  student_logits: jax.Array,
  ids: jax.Array,
  teacher_log_probs: jax.Array,
  *,
  margin: float | None = None,
  tie: float = 1e-8,
) -> tuple[jax.Array, jax.Array]:
  """sum over pairs with p_k > p_l of max(0, m - (q_k - q_l)).

  After DistillKit's sparse hinge loss.

  Args:
    student_logits: [..., V].
    ids: int[..., K]; teacher_log_probs: [..., K].
    margin: m; None asks for the teacher's own difference p_k - p_l.
    tie: pairs whose probabilities differ by no more are left out.

  Returns:
    The sum and the number of pairs, [...] each.
  """
  q, p = jnp.exp(gather(student_logits, ids)), jnp.exp(jax.lax.stop_gradient(teacher_log_probs))
  wanted = _differences(p)
  ordered = wanted > tie
  loss = jax.nn.relu((wanted if margin is None else margin) - _differences(q))
  return _sum_pairs(loss, ordered)


def ranking_logistic(
  student_logits: jax.Array, ids: jax.Array, teacher_log_probs: jax.Array, *, tie: float = 1e-9
) -> tuple[jax.Array, jax.Array]:
  """sum over pairs with p_k > p_l of log(1 + exp(z_l - z_k)), z the student's logits.

  Burges et al., Learning to Rank using Gradient Descent (ICML 2005), as in DistillKit.

  Returns:
    The sum and the number of pairs, [...] each.
  """
  p = jnp.exp(jax.lax.stop_gradient(teacher_log_probs))
  loss = jax.nn.softplus(-_differences(gather(student_logits, ids)))
  return _sum_pairs(loss, _differences(p) > tie)


def _differences(x: jax.Array) -> jax.Array:
  return x[..., :, None] - x[..., None, :]


def _sum_pairs(loss: jax.Array, pairs: jax.Array) -> tuple[jax.Array, jax.Array]:
  total = jnp.sum(jnp.where(pairs, loss, 0.0), axis=(-2, -1))
  return total, jnp.sum(pairs, axis=(-2, -1)).astype(total.dtype)
