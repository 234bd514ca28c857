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
  p, q = jnp.exp(log_p), jnp.exp(log_q)
  gap = jnp.abs(p - q)
  total = jnp.sum(gap, axis=-1)
  inside = jnp.sum(jnp.where(head(p, head_mass, boundary_in_head), gap, 0.0), axis=-1)
  share = inside / jnp.where(total > 0, total, 1.0)
  return share, jnp.where(total > 0, 1 - share, 0.0)


def head(p: jax.Array, mass: float, boundary: bool) -> jax.Array:
  """bool [..., V]: the likeliest ids that together hold `mass`; of equals the first.

  The smallest probability among them is found bit by bit, in 31 sums over the vocabulary (63 of
  float64), where a sort takes several times as long.

  Args:
    p: [..., V], float32 or float64.
    mass: as `head_mass` in `adaptive_kl`.
    boundary: whether the id that brings them to it is in. The likeliest always is.
  """
  integer = jnp.int64 if p.dtype == jnp.float64 else jnp.int32
  order = jax.lax.bitcast_convert_type(p, integer)  # of floats above 0 also their order
  top = 8 * p.dtype.itemsize - 2

  def settle(i, least):
    higher = least | (jnp.ones((), integer) << (top - i).astype(integer))
    held = jnp.sum(jnp.where(order >= higher, p, 0), axis=-1, keepdims=True)
    return jnp.where(held >= mass, higher, least)

  least = jax.lax.fori_loop(0, top + 1, settle, jnp.zeros_like(order[..., :1]))
  larger, equal = order > least, order == least
  size = jax.lax.bitcast_convert_type(least, p.dtype)
  more = jnp.sum(jnp.where(larger, p, 0), axis=-1, keepdims=True)
  before = more + size * (jnp.cumsum(equal, axis=-1) - 1)
  fits = before < mass if boundary else before + size <= mass
  first = jnp.arange(p.shape[-1]) == jnp.argmax(p, axis=-1, keepdims=True)
  return larger | (equal & fits) | first
