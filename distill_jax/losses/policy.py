"""x"""

import jax
import jax.numpy as jnp

from distill_jax.losses.log_probs import log_softmax


def expected_value(
  student_logits: jax.Array, values: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
  """sum_v q(v) values(v)."""
  if where is not None:
    student_logits = jnp.where(where[..., None], student_logits, 0.0)
    values = jnp.where(where[..., None], values, 0.0)
  return jnp.sum(jnp.exp(log_softmax(student_logits)) * values, axis=-1)
