"""Schedules of noise, and what a network predicts on them.

x_t = alpha_t x0 + sigma_t eps, with eps ~ N(0, I). Functions of time are elementwise and keep the
dtype of their argument; round trips are exact to float64 rounding.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.losses.denoising import expand

PREDICTIONS = ("x0", "epsilon", "v", "flow", "score", "F")


class Schedule(NamedTuple):
  """A path from data (`clean`) to noise (`noisy`)."""

  alpha: Callable[[jax.Array], jax.Array]  # of the time
  sigma: Callable[[jax.Array], jax.Array]
  time: Callable[[jax.Array], jax.Array]  # of the noise-to-signal ratio sigma / alpha
  clean: float  # the times where training and sampling begin and end
  noisy: float


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Schedule:
  """alpha = 1, sigma = t; also the variance-exploding process in its own noise level.

  Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models
  (arXiv:2206.00364).
  """
  return Schedule(jnp.ones_like, lambda t: t, lambda ratio: ratio, sigma_min, sigma_max)


def ve(sigma_min: float = 0.02, sigma_max: float = 100.0) -> Schedule:
  """Variance exploding in the time of the SDE: alpha = 1, sigma = sqrt(t).

  Song et al., Score-Based Generative Modeling through Stochastic Differential Equations
  (arXiv:2011.13456), in the form of Karras et al. (arXiv:2206.00364), Table 1.
  """
  return Schedule(jnp.ones_like, jnp.sqrt, jnp.square, sigma_min**2, sigma_max**2)


def flow(shift: float = 1.0, *, clean: float = 0.0, noisy: float = 1.0) -> Schedule:
  """Rectified flow: alpha = 1 - s, sigma = s at s = shift t / (1 + (shift - 1) t).

  Liu et al., Flow Straight and Fast (arXiv:2209.03003); the shift of times towards noise for large
  images: Esser et al., Scaling Rectified Flow Transformers (arXiv:2403.03206), eq. 23. Here t = 0
  is data and t = 1 is noise.
  """

  def shifted(t):
    return shift * t / (1 + (shift - 1) * t)

  def time(ratio):  # s = ratio / (1 + ratio); also at an infinite ratio
    s = 1 / (1 + 1 / ratio)
    return s / (shift - (shift - 1) * s)

  return Schedule(lambda t: 1 - shifted(t), shifted, time, clean, noisy)


def trigflow(
  sigma_data: float = 1.0, *, clean: float = 0.0, noisy: float = math.pi / 2
) -> Schedule:
  """alpha = cos t, sigma = sigma_data sin t.

  Lu and Song, Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models
  (arXiv:2410.11081), section 3.
  """
  return Schedule(
    jnp.cos,
    lambda t: sigma_data * jnp.sin(t),
    lambda ratio: jnp.arctan(ratio / sigma_data),
    clean,
    noisy,
  )


def vp_linear(
  beta_min: float = 0.1, beta_d: float = 19.9, *, clean: float = 1e-5, noisy: float = 1.0
) -> Schedule:
  """Variance preserving, rate of noise linear in t.

  alpha = exp(-(beta_d t^2 / 2 + beta_min t) / 2).

  Song et al. (arXiv:2011.13456), eq. 32 and 33.
  """

  def decay(t):
    return 0.5 * beta_d * t**2 + beta_min * t

  def time(ratio):
    return (jnp.sqrt(beta_min**2 + 2 * beta_d * jnp.log1p(ratio**2)) - beta_min) / beta_d

  return Schedule(
    lambda t: jnp.exp(-0.5 * decay(t)),
    lambda t: jnp.sqrt(-jnp.expm1(-decay(t))),
    time,
    clean,
    noisy,
  )


def vp_cosine(
  log_snr_min: float = -20.0, log_snr_max: float = 20.0, *, clean: float = 0.0, noisy: float = 1.0
) -> Schedule:
  """Variance preserving, log(alpha^2 / sigma^2) = -2 log tan(a t + b), b and a from its ends.

  Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models (arXiv:2102.09672), in the
  truncated form of Salimans and Ho, Progressive Distillation (arXiv:2202.00512), section 2. At
  infinite ends it is alpha = cos(pi t / 2).
  """
  begin, end = math.atan(math.exp(-0.5 * log_snr_max)), math.atan(math.exp(-0.5 * log_snr_min))

  def angle(t):
    return (end - begin) * t + begin

  return Schedule(
    lambda t: jnp.cos(angle(t)),
    lambda t: jnp.sin(angle(t)),
    lambda ratio: (jnp.arctan(ratio) - begin) / (end - begin),
    clean,
    noisy,
  )


def rates(schedule: Schedule, t: jax.Array) -> tuple[jax.Array, jax.Array]:
  """d alpha / dt and d sigma / dt at t."""
  ones = jnp.ones_like(t)
  return jax.jvp(schedule.alpha, (t,), (ones,))[1], jax.jvp(schedule.sigma, (t,), (ones,))[1]


def log_snr(schedule: Schedule, t: jax.Array) -> jax.Array:
  """log(alpha^2 / sigma^2) at t."""
  return 2 * (jnp.log(schedule.alpha(t)) - jnp.log(schedule.sigma(t)))


def noised(schedule: Schedule, x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
  """alpha_t x0 + sigma_t eps: x0 and eps [B, ...], t [B]."""
  return expand(schedule.alpha(t), x0) * x0 + expand(schedule.sigma(t), x0) * eps


def convert(
  prediction: jax.Array,
  x_t: jax.Array,
  t: jax.Array,
  schedule: Schedule,
  source: str,
  target: str,
  *,
  sigma_data: float = 1.0,
) -> jax.Array:
  """What a network said of x_t, in other words.

  Of x_t = alpha x0 + sigma eps, with s^2 = sigma^2 + alpha^2 sigma_data^2:

    x0, epsilon: the two parts
    v      alpha eps - sigma x0 (Salimans and Ho, arXiv:2202.00512)
    flow   d x_t / dt = alpha' x0 + sigma' eps, the velocity of the probability-flow ODE
    score  grad log p_t(x_t) = -eps / sigma
    F      (alpha sigma_data^2 eps - sigma x0) / (s sigma_data), TrigFlow's network at the same
           angle and minus EDM's

  The pair (x_t, prediction) is solved for (x0, eps) by the one 2 by 2 system they are all rows of:
  nothing is divided by but the determinant. It is 0 where the prediction says nothing new (epsilon
  at t = 0 does not determine eps from x_t alone, score has no value there).

  Args:
    prediction, x_t: [B, ...].
    t: [B] or a scalar.
    source, target: of `PREDICTIONS`.
    sigma_data: the standard deviation of the data, for F.
  """
  if source == target:
    return prediction
  first = jnp.stack([schedule.alpha(t), schedule.sigma(t)])
  second, wanted = (_row(name, t, schedule, sigma_data) for name in (source, target))
  determinant = first[0] * second[1] - first[1] * second[0]
  on_x = (wanted[0] * second[1] - wanted[1] * second[0]) / determinant
  on_prediction = (first[0] * wanted[1] - first[1] * wanted[0]) / determinant
  return expand(on_x, x_t) * x_t + expand(on_prediction, x_t) * prediction


def _row(name: str, t: jax.Array, schedule: Schedule, sigma_data: float) -> jax.Array:
  """The prediction as a combination of x0 and eps: [2, ...]."""
  alpha, sigma = schedule.alpha(t), schedule.sigma(t)
  zero, one = jnp.zeros_like(sigma), jnp.ones_like(sigma)
  match name:
    case "x0":
      row = (one, zero)
    case "epsilon":
      row = (zero, one)
    case "v":
      row = (-sigma, alpha)
    case "flow":
      row = rates(schedule, t)
    case "score":
      row = (zero, -1 / sigma)
    case "F":
      s = jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)
      row = (-sigma / (s * sigma_data), alpha * sigma_data / s)
    case _:
      raise ValueError(f"No prediction {name!r}: one of {', '.join(PREDICTIONS)}")
  return jnp.stack(row)


def guided(unconditional: jax.Array, conditional: jax.Array, scale: jax.Array | float) -> jax.Array:
  """Classifier-free guidance, unconditional + scale (conditional - unconditional): scale 1 is none.

  Ho and Salimans, Classifier-Free Diffusion Guidance (arXiv:2207.12598), whose w is scale - 1.
  Works on any prediction that is linear in x0. `scale` is a number or [B].
  """
  scale = expand(jnp.asarray(scale, conditional.dtype), conditional)
  return unconditional + scale * (conditional - unconditional)


def guidance_scale(value: float, convention: str) -> float:
  """Our scale for a value that another code base writes.

  "uncond": uncond + g (cond - uncond), ours (diffusers, DMD2, rCM, EDM2). "cond": cond + g (cond -
  uncond) (Ho and Salimans' w, LCM, threestudio's SDS, Self-Forcing), one less than ours.
  """
  match convention:
    case "uncond":
      return value
    case "cond":
      return value + 1
  raise ValueError(f"No convention of guidance {convention!r}: uncond or cond")


def karras_sigmas(
  n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> jax.Array:
  """n noise levels from sigma_max down to sigma_min, even in sigma^(1/rho), without the final 0.

  Karras et al. (arXiv:2206.00364), eq. 5. One level is sigma_max.
  """
  return karras_sigma(jnp.arange(n) / max(n - 1, 1), sigma_min, sigma_max, rho)


def karras_sigma(
  u: jax.Array, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> jax.Array:
  """The noise level at u in [0, 1] of the same grid: u = 0 is sigma_max."""
  low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
  return (high + u * (low - high)) ** rho
