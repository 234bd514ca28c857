"""Targets beyond the teacher: the step from a model before preference training to one after it."""

import jax
import jax.numpy as jnp

from distill_jax.losses.divergences import total_variation


def extrapolate(
  base_logits: jax.Array, tuned_logits: jax.Array, reference_logits: jax.Array, weight: jax.Array
) -> jax.Array:
  """Logits z_base + weight (z_tuned - z_reference), without gradient: [..., V].

  With the reference as base and weight = beta / beta' this is the policy that maximises DPO's
  reward at another strength. AlignDistil takes the tuned model itself as base and a reference tuned
  on swapped pairs.

  Zhang et al., AlignDistil: Token-Level Language Model Alignment as Adaptive Policy Distillation
  (arXiv:2503.02832). Its loss is reverse KL to this target, times beta / weight if the weight is
  adaptive.

  Args:
    weight: [...] or a scalar.
  """
  base, tuned, reference = (
    jax.lax.stop_gradient(x) for x in (base_logits, tuned_logits, reference_logits)
  )
  outside = (base == -jnp.inf) | (tuned == -jnp.inf) | (reference == -jnp.inf)
  step = jnp.where(outside, 0.0, tuned) - jnp.where(outside, 0.0, reference)
  weight = jnp.asarray(weight)[..., None]
  return jnp.where(outside, -jnp.inf, jnp.where(outside, 0.0, base) + weight * step)


def adaptive_weight(
  tuned_logits: jax.Array, reference_logits: jax.Array, *, strength: float
) -> jax.Array:
  """strength sum_v |p_tuned - p_reference| + 1e-3: [..., V] -> [...].

  AlignDistil (arXiv:2503.02832), section 4.3; it calls the sum the total variation distance, which
  is half of it.
  """
  distance = 2 * total_variation(tuned_logits, reference_logits)
  return jax.lax.stop_gradient(strength * distance + 1e-3)
