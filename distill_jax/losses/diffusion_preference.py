"""Preferences between pairs of images, for diffusion models. Losses are [B], one for each pair."""

import math

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, relu


def diffusion_dpo(
  chosen: jax.Array,
  rejected: jax.Array,
  chosen_reference: jax.Array,
  rejected_reference: jax.Array,
  *,
  beta: float,
) -> jax.Array:
  """-log sigmoid(-beta [(chosen - its reference) - (rejected - its reference)]).

  Wallace et al., Diffusion Model Alignment Using Direct Preference Optimization (arXiv:2311.12908),
  whose beta T w(lambda) is beta here. The authors' code takes mean squared errors and half of its
  `beta_dpo` (5000).

  Args:
    chosen, rejected: [B], squared denoising errors of the model on the pair's images, at one time
      and noise.
    chosen_reference, rejected_reference: [B], those of the frozen model; no gradient.
  """
  reference = jax.lax.stop_gradient(chosen_reference - rejected_reference)
  return -log_sigmoid(-beta * ((chosen - rejected) - reference))


def pso(
  chosen: jax.Array,
  rejected: jax.Array,
  chosen_reference: jax.Array,
  rejected_reference: jax.Array,
  *,
  beta: float,
  rejected_weight: float = 1.0,
) -> jax.Array:
  """-log sigmoid(-beta [(chosen - w rejected) - (the same of the reference)]), w = rejected_weight.

  Diffusion-DPO for few-step models, w below 1 to spare the rejected images. Miao et al., Tuning
  Timestep-Distilled Diffusion Model Using Pairwise Sample Optimization (PSO, arXiv:2410.03190),
  offline.

  Args:
    chosen, rejected: [B], mean of (x0 - prediction)^2 / sigma^2 on the data's and on the model's
      own images.
    chosen_reference, rejected_reference: [B], those of the frozen model; no gradient.
  """
  return diffusion_dpo(
    chosen,
    rejected_weight * rejected,
    chosen_reference,
    rejected_weight * rejected_reference,
    beta=beta,
  )


def pso_hinge(
  chosen: jax.Array, rejected: jax.Array, *, beta: float, rejected_weight: float = 1.0
) -> jax.Array:
  """max(0, 1 + beta (chosen - w rejected)): `pso` without a reference, as its code for few images.

  Args:
    chosen, rejected: [B], as in `pso`.
  """
  return relu(1 + beta * (chosen - rejected_weight * rejected))


def pso_online(
  log_probs: jax.Array, reference: jax.Array, signs: jax.Array, *, beta: float, clip: float
) -> jax.Array:
  """-log sigmoid(beta sum_k s_k log clip(exp(log_probs_k - reference_k), 1 - clip, 1 + clip)).

  Where the ratio is clipped there is no gradient. Miao et al. (PSO, arXiv:2410.03190), online.

  Args:
    log_probs: [B, 2], log-probabilities of one denoising step of each image of a pair.
    reference: [B, 2], those of the frozen model; no gradient.
    signs: [B, 2], s = 1 for the preferred image and -1 for the other.
    clip: in (0, 1).
  """
  log_ratio = log_probs - jax.lax.stop_gradient(reference)
  log_ratio = jnp.clip(log_ratio, math.log1p(-clip), math.log1p(clip))
  return -log_sigmoid(beta * jnp.sum(signs * log_ratio, axis=-1))


def euler_ancestral_log_prob(
  noise: jax.Array,
  x: jax.Array,
  x_next: jax.Array,
  sigma: jax.Array,
  sigma_next: jax.Array,
) -> jax.Array:
  """log N(x_next; x + (down - sigma) noise, up^2), the mean over an example's entries.

  up = sigma_next sqrt(1 - (sigma_next / sigma)^2), down = sigma_next^2 / sigma: one ancestral step
  of Euler's method. The mean, not the sum, as in the authors' code of PSO (arXiv:2410.03190).

  Args:
    noise: [B, ...], the model's prediction at x.
    x, x_next: [B, ...], x0 + sigma eps before and after the step.
    sigma, sigma_next: [B], sigma > sigma_next > 0.

  Returns:
    [B] in nats for each entry.
  """
  sigma, sigma_next = (s.reshape(s.shape + (1,) * (x.ndim - 1)) for s in (sigma, sigma_next))
  up = sigma_next * jnp.sqrt(1 - jnp.square(sigma_next / sigma))
  mean = x + (jnp.square(sigma_next) / sigma - sigma) * noise
  log_prob = -jnp.square((x_next - mean) / up) / 2 - jnp.log(up) - math.log(2 * math.pi) / 2
  return jnp.mean(log_prob, axis=tuple(range(1, x.ndim)))
