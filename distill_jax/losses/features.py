"""Distances between hidden states of student and teacher."""

import jax
import jax.numpy as jnp


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
