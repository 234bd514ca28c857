"""Regression on what a diffusion network predicts: x_t = alpha x0 + sigma eps.

Arrays are [B, ...]; levels and weights are numbers or [B]. Losses are elementwise, shaped like the
prediction: the mean or the sum over an example's entries is the caller's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


def expand(values: jax.Array | float, x: jax.Array) -> jax.Array:
  """One number for each example, shaped to multiply x: [B] -> [B, 1, ...]; others pass."""
  values = jnp.asarray(values)
  return values.reshape(values.shape + (1,) * (x.ndim - 1)) if values.ndim == 1 else values


def floats(*arrays: jax.Array) -> list[jax.Array]:
  """The arrays in their common type, float32 at least: losses are not computed in bfloat16."""
  dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
  return [array.astype(dtype) for array in arrays]


def squared_error(
  prediction: jax.Array, target: jax.Array, *, weight: jax.Array | float = 1.0
) -> jax.Array:
  """weight (prediction - target)^2, elementwise.

  Args:
    prediction, target: [B, ...], clean images, noise or velocities. Gradients flow into both.
    weight: a number, or [B].

  Returns:
    [B, ...], float32 or float64.
  """
  prediction, target = floats(prediction, target)
  return expand(weight, target) * jnp.square(prediction - target)


def edm_weight(sigma: jax.Array, *, sigma_data: float = 0.5) -> jax.Array:
  """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 = 1 / sigma^2 + 1 / sigma_data^2.

  With it the error of EDM's inner network F counts the same at every level. Karras et al.,
  Elucidating the Design Space of Diffusion-Based Generative Models (arXiv:2206.00364), Table 1.
  """
  return 1 / jnp.square(sigma) + 1 / sigma_data**2


def edm(
  denoised: jax.Array,
  clean: jax.Array,
  sigma: jax.Array,
  *,
  sigma_data: float = 0.5,
  log_variance: jax.Array | float | None = None,
) -> jax.Array:
  """lambda(sigma) exp(-u) (D - x0)^2 + u, lambda of `edm_weight`, u = log_variance, elementwise.

  Also the loss of the fake score in SiD and DMD2, on generated images. Karras et al.
  (arXiv:2206.00364), Table 1; with u learnt for each level, Karras et al., Analyzing and Improving
  the Training Dynamics of Diffusion Models (EDM2, arXiv:2312.02696).

  Args:
    denoised, clean: [B, ...]: D(x0 + sigma eps, sigma) and x0.
    sigma: [B].
    log_variance: u, a number or [B]; None is the loss without it, as at u = 0.
  """
  weight = edm_weight(sigma, sigma_data=sigma_data)
  if log_variance is None:
    return squared_error(denoised, clean, weight=weight)
  u = jnp.asarray(log_variance)
  return squared_error(denoised, clean, weight=weight * jnp.exp(-u)) + expand(u, denoised)


class Subinterval(NamedTuple):
  """What `subinterval` makes of x_s."""

  x_t: jax.Array  # [B, ...]
  flow: jax.Array  # [B, ...], the target
  weight: jax.Array  # [B]


def subinterval(x_s: jax.Array, noise: jax.Array, s: jax.Array, t: jax.Array) -> Subinterval:
  """Flow matching from x_s instead of from data, on the path (1 - t) x0 + t eps with s < t.

  x_t = a x_s + b noise, a = (1 - t) / (1 - s), b^2 = t^2 - a^2 s^2;
  target ((1 - s)^2 t + (1 - t) s^2) / ((1 - s)^2 b) noise - x_s / (1 - s), weight 1 / b^2.

  The mean of the target given x_t is the velocity E[eps - x0 | x_t], as if x0 were known, so a fake
  score learns an interval of noise levels from samples that were never cleaned. Fan et al., Phased
  DMD (arXiv:2510.27684); rederived here, and the upper clamp of the weight, which the paper has, is
  the caller's.

  Args:
    x_s, noise: [B, ...]; noise is N(0, I), independent of x_s.
    s, t: [B], 0 <= s < t <= 1, s below 1.
  """
  alpha_s, alpha_t = 1 - s, 1 - t
  kept = alpha_t / alpha_s
  added = jnp.sqrt(jnp.square(t) - jnp.square(kept * s))
  slope = (jnp.square(alpha_s) * t + alpha_t * jnp.square(s)) / (jnp.square(alpha_s) * added)
  return Subinterval(
    expand(kept, x_s) * x_s + expand(added, x_s) * noise,
    expand(slope, x_s) * noise - x_s / expand(alpha_s, x_s),
    1 / jnp.square(added),
  )
