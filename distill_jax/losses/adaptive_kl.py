"""Forward and reverse KL mixed by where teacher and student differ.

Conventions as in `divergences.py`: p is the teacher, q the student, [..., V] in, [...] nats out.
"""

import jax
import jax.numpy as jnp

from distill_jax.losses.log_probs import kl, pair


def adaptive_kl(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  head_mass: float = 0.5,
  boundary_in_head: bool = True,
  temperature: float | jax.Array = 1.0,
  where: jax.Array | None = None,
) -> jax.Array:
  """g KL(p || q) + (1 - g) KL(q || p), where g is the share of sum_v |p - q| that lies in the head.

  Wu, Tao, Wang, Wang, Xiao, Jin, Rethinking Kullback-Leibler Divergence in Knowledge Distillation
  for Large Language Models (arXiv:2404.02657). g carries no gradient; at p = q it is 0.

  Args:
    head_mass: the head is the smallest set of the teacher's likeliest ids that holds this mass.
    boundary_in_head: whether the id that brings the head to its mass belongs to it, as in the
      paper. The authors' code leaves it out, unless it is the likeliest of all.
  """
  log_q, log_p, counts = pair(student_logits, teacher_logits, temperature=temperature, where=where)
  g_head, g_tail = adaptive_kl_weights(
    log_q, log_p, head_mass=head_mass, boundary_in_head=boundary_in_head
  )
  return jnp.where(counts, g_head * kl(log_p, log_q) + g_tail * kl(log_q, log_p), 0.0)


def adaptive_kl_weights(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  head_mass: float = 0.5,
  boundary_in_head: bool = True,
) -> tuple[jax.Array, jax.Array]:
  """The shares of sum_v |p - q| in the teacher's head and tail, as `adaptive_kl` uses them.

  Returns:
    [...] and [...], without gradient; their sum is 1, or both are 0 where p = q.
  """
  log_q, log_p, _ = pair(jax.lax.stop_gradient(student_logits), teacher_logits)
  order = jnp.argsort(-log_p, axis=-1)
  p, q = (jnp.take_along_axis(jnp.exp(x), order, axis=-1) for x in (log_p, log_q))
  mass = jnp.cumsum(p, axis=-1)
  inner, outer = mass - p < head_mass, mass <= head_mass  # with and without the boundary
  head = inner if boundary_in_head else outer.at[..., 0].set(True)
  gap = jnp.abs(p - q)
  total = jnp.sum(gap, axis=-1)
  share = jnp.sum(jnp.where(head, gap, 0.0), axis=-1) / jnp.where(total > 0, total, 1.0)
  return share, jnp.where(total > 0, 1 - share, 0.0)
