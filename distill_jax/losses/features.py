"""Distances between hidden states of student and teacher."""

import jax
import jax.numpy as jnp

from distill_jax.losses.divergences import forward_kl


def mean_squared(
  student: jax.Array, teacher: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
  """Mean over the features of (student - teacher)^2: [..., D] -> [...]."""
  student, teacher = _prepare(student, teacher, where)
  return _finish(jnp.mean(jnp.square(student - teacher), axis=-1), where)


def cosine_distance(
  student: jax.Array,
  teacher: jax.Array,
  *,
  epsilon: float = 1e-8,
  where: jax.Array | None = None,
) -> jax.Array:
  """1 - cosine of the angle between student and teacher: [..., D] -> [...], in [0, 2].

  Norms below `epsilon` count as `epsilon`, so that a zero vector is at distance 1 from everything
  and has a finite gradient.
  """
  student, teacher = _prepare(student, teacher, where)
  dot = jnp.sum(student * teacher, axis=-1)
  return _finish(1 - dot / (_norm(student, epsilon) * _norm(teacher, epsilon)), where)


def _norm(x: jax.Array, epsilon: float) -> jax.Array:
  square = jnp.sum(jnp.square(x), axis=-1)
  large = square > epsilon**2
  return jnp.where(large, jnp.sqrt(jnp.where(large, square, 1.0)), epsilon)


def _prepare(student, teacher, where):
  if student.shape != teacher.shape:
    raise ValueError(f"features differ in shape: {student.shape} and {teacher.shape}")
  dtype = jnp.promote_types(jnp.result_type(student, teacher), jnp.float32)
  student, teacher = student.astype(dtype), jax.lax.stop_gradient(teacher.astype(dtype))
  if where is None:
    return student, teacher
  return tuple(jnp.where(where[..., None], x, 0.0) for x in (student, teacher))


def _finish(values: jax.Array, where: jax.Array | None) -> jax.Array:
  return values if where is None else jnp.where(where, values, 0.0)


def relations(student: jax.Array, teacher: jax.Array, *, heads: int, where: jax.Array) -> jax.Array:
  """KL between the teacher's and the student's similarities of positions, a mean over heads.

  R = softmax(x x^T / sqrt(d)) over the positions that a position sees, x one of queries, keys or
  values, split anew into `heads` of width d; no projection is needed where the widths differ.

  Wang et al., MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained
  Transformers (arXiv:2012.15828), eq. 5 to 7; on values alone it is MiniLM's (arXiv:2002.10957),
  eq. 3.

  Args:
    student, teacher: [B, T, D] and [B, T, E], the heads of the model side by side.
    heads: divides D and E.
    where: bool[B, T, T] or [1, T, T], the positions (last) that each position sees.

  Returns:
    [B, T] nats; 0 for a position that sees none.

  Raises:
    ValueError: `heads` does not divide a width.
  """

  def relation(x):
    if x.shape[-1] % heads:
      raise ValueError(f"{heads} relation heads do not divide a width of {x.shape[-1]}")
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = x.reshape(*x.shape[:-1], heads, -1)
    scores = jnp.einsum("bthd,bshd->bhts", x, x) / x.shape[-1] ** 0.5
    return jnp.where(where[:, None], scores, -jnp.inf)

  return jnp.mean(forward_kl(relation(student), relation(teacher)), axis=1)
