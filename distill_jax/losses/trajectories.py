"""Targets from a teacher's steps: progressive and guidance distillation, BOOT, LCM, PCM.

x_t = alpha x0 + sigma eps. A noise level is a pair (alpha, sigma) of [B] arrays or numbers; `vp`
makes the pair of a variance-preserving process from its log-SNR.
"""

import math

import jax
import jax.numpy as jnp

from distill_jax.losses.consistency import mean_squared, rows
from distill_jax.losses.denoising import expand

Level = tuple[jax.Array, jax.Array]


def vp(log_snr: jax.Array) -> Level:
  """(alpha, sigma) = (sqrt(sigmoid(l)), sqrt(sigmoid(-l))), l = log(alpha^2 / sigma^2)."""
  return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))


def noised(x0: jax.Array, eps: jax.Array, level: Level) -> jax.Array:
  """alpha x0 + sigma eps: [B, ...]."""
  alpha, sigma = (expand(a, x0) for a in level)
  return alpha * x0 + sigma * eps


def ddim_step(x: jax.Array, x0: jax.Array, now: Level, then: Level) -> jax.Array:
  """alpha_s x0 + (sigma_s / sigma_t) (x - alpha_t x0): one step of DDIM from t to s.

  Song, Meng, Ermon, Denoising Diffusion Implicit Models (arXiv:2010.02502), without fresh noise.

  Args:
    x, x0: [B, ...], the noised image at t and what a network thinks it was.
    now, then: the levels t and s.
  """
  (alpha, sigma), (alpha_s, sigma_s) = (tuple(expand(a, x) for a in v) for v in (now, then))
  return alpha_s * x0 + sigma_s / sigma * (x - alpha * x0)


def inverse_ddim(x: jax.Array, then_x: jax.Array, now: Level, then: Level) -> jax.Array:
  """The x0 with which one DDIM step from x at t gives `then_x` at s, without a gradient.

  x0 = (x_s - (sigma_s / sigma_t) x_t) / (alpha_s - (sigma_s / sigma_t) alpha_t).

  The target of progressive distillation, with two steps of the teacher from x to then_x: Salimans
  and Ho, Progressive Distillation for Fast Sampling of Diffusion Models (arXiv:2202.00512).
  The target of multistep consistency models, with one step of the
  teacher and then one of the student to the end of its segment: Heek, Hoogeboom, Salimans,
  Multistep Consistency Models (arXiv:2403.06807). At s with sigma_s = 0 it is x_s /
  alpha_s.
  """
  (alpha, sigma), (alpha_s, sigma_s) = (tuple(expand(a, x) for a in v) for v in (now, then))
  ratio = sigma_s / sigma
  return jax.lax.stop_gradient((then_x - ratio * x) / (alpha_s - ratio * alpha))


def euler_denoised(x: jax.Array, then_x: jax.Array, sigma: jax.Array, then: jax.Array) -> jax.Array:
  """x - sigma (x_s - x) / (s - sigma): `inverse_ddim` where alpha = 1, without a gradient.

  Progressive distillation in EDM's noise levels, as the code of Song et al., Consistency Models
  (arXiv:2303.01469) has it; x_s by two Euler steps of the teacher.

  Args:
    x, then_x: [B, ...].
    sigma, then: [B], their noise levels.
  """
  sigma, then = expand(sigma, x), expand(then, x)
  return jax.lax.stop_gradient(x - sigma * (then_x - x) / (then - sigma))


def snr_weight(log_snr: jax.Array, weight: str = "truncated_snr") -> jax.Array:
  """Weight of (x0 - target)^2 in a variance-preserving process of SNR S = alpha^2 / sigma^2.

  "constant" 1; "snr" S, the squared error of eps; "truncated_snr" max(S, 1), the larger of both
  errors; "snr_plus_one" S + 1, the squared error of v. Like log_snr.

  Salimans and Ho (arXiv:2202.00512).

  Raises:
    ValueError: there is no such weight.
  """
  snr = jnp.exp(log_snr)
  match weight:
    case "constant":
      return jnp.ones_like(snr)
    case "snr":
      return snr
    case "truncated_snr":
      return jnp.maximum(snr, 1.0)
    case "snr_plus_one":
      return snr + 1
  raise ValueError(f"no weight {weight!r}: constant, snr, truncated_snr, snr_plus_one")


def progressive(
  student: jax.Array, target: jax.Array, log_snr: jax.Array, *, weight: str = "truncated_snr"
) -> jax.Array:
  """w(l) mean (x0_student - sg target)^2: progressive distillation.

  Salimans and Ho (arXiv:2202.00512). In float32 ask a network that predicts v or x0
  for x0: from eps it is inexact at low SNR.

  Args:
    student, target: [B, ...], x0 by the student at level l, and `inverse_ddim`. Where the second
      step of the teacher ends on the data the target is the teacher's x0 of that step.
    log_snr: [B], l of the noised image.
    weight: of `snr_weight`.

  Returns:
    [B].
  """
  return snr_weight(log_snr, weight) * mean_squared(student, jax.lax.stop_gradient(target))


def guidance(
  student: jax.Array,
  conditional: jax.Array,
  unconditional: jax.Array,
  scale: jax.Array,
  log_snr: jax.Array,
  *,
  weight: str = "truncated_snr",
) -> jax.Array:
  """w(l) mean (x0_student(scale) - sg guided)^2: the student takes the scale as an input.

  Meng et al., On Distillation of Guided Diffusion Models (arXiv:2210.03142), algorithm 1 (their w
  is scale - 1).

  Args:
    student, conditional, unconditional: [B, ...], x0 by the student and twice by the teacher.
    scale: [B], of `guided`.
    log_snr: [B].

  Returns:
    [B].
  """
  return progressive(student, guided(conditional, unconditional, scale), log_snr, weight=weight)


def guided(conditional: jax.Array, unconditional: jax.Array, scale: jax.Array) -> jax.Array:
  """unconditional + scale (conditional - unconditional); scale 1 is no guidance: [B, ...].

  Ho and Salimans, Classifier-Free Diffusion Guidance (arXiv:2207.12598), whose w is scale - 1, as
  is LCM's.
  """
  return unconditional + expand(scale, conditional) * (conditional - unconditional)


def boot_input(y: jax.Array, eps: jax.Array, log_snr: jax.Array) -> jax.Array:
  """x_t = alpha y + sigma eps, what the teacher sees of the student's y(eps, t): [B, ...]."""
  return noised(y, eps, vp(log_snr))


def boot_target(
  y: jax.Array, denoised: jax.Array, log_snr: jax.Array, then_log_snr: jax.Array
) -> jax.Array:
  """y_s = (1 - k) x0 + k y_t, k = exp((l_t - l_s) / 2), without a gradient: BOOT's signal-ODE.

  y = (x_t - sigma_t eps) / alpha_t is the image that x_t would show were eps its noise; one step
  is DDIM's on x_t with eps held fixed. It needs no data: y(eps, T) starts from noise alone.

  Gu et al., BOOT: Data-free Distillation of Denoising Diffusion Models with Bootstrapping
  (arXiv:2306.05544). There is no official code; the loss is a squared error of y(eps, s).

  Args:
    y: [B, ...], the student's y(eps, t).
    denoised: [B, ...], the teacher's x0 of `boot_input`.
    log_snr, then_log_snr: [B], l_t < l_s.
  """
  keep = expand(jnp.exp((log_snr - then_log_snr) / 2), y)
  return jax.lax.stop_gradient((1 - keep) * denoised + keep * y)


def addim_step(
  x: jax.Array, x0: jax.Array, now: Level, then: Level, *, eta: float = 0.1
) -> jax.Array:
  """DDIM with the noise that averaging x0 over its posterior has lost (aDDIM), deterministic.

  alpha_s x0 + sqrt(sigma_s^2 + (D / ||eps||^2) (alpha_s - alpha_t sigma_s / sigma_t)^2 v) eps, with
  v = eta / (2 + sigma_t^2 / alpha_t^2) for the variance of x0, D numbers in an example.

  Heek, Hoogeboom, Salimans (arXiv:2403.06807). There is no official code; the form of v
  has not been checked against the paper.
  """
  (alpha, sigma), (alpha_s, sigma_s) = (tuple(expand(a, x) for a in v) for v in (now, then))
  eps = (x - alpha * x0) / sigma
  variance = (alpha_s - alpha * sigma_s / sigma) ** 2 * eta / (2 + (sigma / alpha) ** 2)
  power = expand(jnp.mean(jnp.square(rows(eps)), axis=-1), x)
  return alpha_s * x0 + jnp.sqrt(sigma_s**2 + variance / power) * eps


def ode_regression(generated: jax.Array, endpoint: jax.Array) -> jax.Array:
  """1/2 mean (generated - sg endpoint)^2: distillation on stored pairs (noise, end of the ODE).

  Luhman and Luhman, Knowledge Distillation in Iterative Generative Models for Improved Sampling
  Speed (arXiv:2101.02388). [B, ...], [B, ...] -> [B].
  """
  return mean_squared(generated, jax.lax.stop_gradient(endpoint)) / 2


def lcm_scalings(
  timestep: jax.Array, *, sigma_data: float = 0.5, timestep_scaling: float = 10.0
) -> tuple[jax.Array, jax.Array]:
  """(c_skip, c_out) = (sd^2 / (s^2 + sd^2), s / sqrt(s^2 + sd^2)), s = 10 timestep.

  Luo et al., Latent Consistency Models (arXiv:2310.04378), in the form of the authors' code; f =
  c_skip z + c_out x0. As timesteps are integers c_skip is about 0 everywhere but at 0.
  """
  s = timestep * timestep_scaling
  return sigma_data**2 / (s**2 + sigma_data**2), s / jnp.sqrt(s**2 + sigma_data**2)


def segment_target(previous: jax.Array, jumped: jax.Array, at_edge: jax.Array) -> jax.Array:
  """The teacher's step where it has reached the segment's edge, else the target's jump to it.

  Wang et al., Phased Consistency Models (arXiv:2405.18407); Ren et al., Hyper-SD (arXiv:2404.13686)
  with its trajectory-segmented consistency distillation. Without a gradient.

  Args:
    previous: [B, ...], x at the end of the teacher's step.
    jumped: [B, ...], `ddim_step` from there to the edge by the target network.
    at_edge: bool [B].
  """
  return jax.lax.stop_gradient(jnp.where(expand(at_edge, previous), previous, jumped))


def guidance_embedding(scale: jax.Array, size: int) -> jax.Array:
  """[sin(1000 w f), cos(1000 w f)], f_j = 10000^(-j / (h - 1)), h = size // 2: [B] -> [B, size].

  An odd size ends in a 0. Luo et al. (arXiv:2310.04378), in the form of the authors' code, whose w
  is the scale of `guided` minus 1.
  """
  half = size // 2
  frequencies = jnp.exp(-math.log(10000.0) / (half - 1) * jnp.arange(half, dtype=scale.dtype))
  angles = 1000 * scale[:, None] * frequencies
  embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
  return jnp.pad(embedding, [(0, 0), (0, size % 2)])
