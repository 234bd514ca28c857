"""Tables of betas, as DDPM, Stable Diffusion and their descendants count noise: timesteps [0, n).

A table is a grid of noise levels: x_t / alpha_t is at level `levels(betas)[t]`, so the samplers of
EDM's denoiser run on it (samplers.py). Here are the tables, and the posterior that DDPM draws from.
"""

import jax
import jax.numpy as jnp

from distill_jax.config import ConfigError, did_you_mean
from distill_jax.diffusion import schedules

NAMES = ("linear", "quad", "sigmoid", "const", "jsd")


def betas(name: str, n: int = 1000, start: float = 1e-4, end: float = 0.02) -> jax.Array:
  """A table of betas [n], from `start` to `end`.

  linear; quad: linear in the square root (Stable Diffusion's, from 0.00085 to 0.012); sigmoid: of
  -6 to 6; const: all `end`; jsd: 1 / n, 1 / (n - 1), ..., 1. Names as in the code of Song et al.,
  Denoising Diffusion Implicit Models (arXiv:2010.02502).
  """
  match name:
    case "linear":
      return jnp.linspace(start, end, n)
    case "quad":
      return jnp.square(jnp.linspace(start**0.5, end**0.5, n))
    case "sigmoid":
      return jax.nn.sigmoid(jnp.linspace(-6.0, 6.0, n)) * (end - start) + start
    case "const":
      return jnp.full(n, end)
    case "jsd":
      return 1 / jnp.linspace(float(n), 1.0, n)
  raise ConfigError(f"No table of betas {name!r}." + did_you_mean(name, NAMES))


def levels(betas: jax.Array) -> jax.Array:
  """sigma / alpha at each timestep, rising: sqrt(1 / abar - 1), abar = cumprod(1 - betas)."""
  return jnp.sqrt(jnp.expm1(-jnp.cumsum(jnp.log1p(-betas))))


def vp_posterior(
  x_t: jax.Array, x0: jax.Array, log_snr_t: jax.Array, log_snr_s: jax.Array, *, large: float = 0.0
) -> tuple[jax.Array, jax.Array]:
  """Mean and log variance of q(x_s | x_t, x0) for a variance-preserving schedule, s cleaner than t.

  With r = SNR_t / SNR_s: mean = r (alpha_s / alpha_t) x_t + (1 - r) alpha_s x0; the variance is
  (1 - r) sigma_s^2 (small, the posterior's own), (1 - r) sigma_t^2 (large, DDPM's beta), or between
  them in the logarithm.

  Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models (arXiv:2006.11239), section 3.2;
  Salimans and Ho, Progressive Distillation (arXiv:2202.00512), the authors' code.

  Args:
    x_t, x0: [B, ...].
    log_snr_t, log_snr_s: [B] or scalars, log(alpha^2 / sigma^2); s may be clean (inf).
    large: 0 the small variance, 1 the large.

  Returns:
    Mean [B, ...] and log variance shaped like log_snr_t; -inf is no noise.
  """
  gap = log_snr_t - log_snr_s
  sigma_t, sigma_s = -jax.nn.softplus(log_snr_t), -jax.nn.softplus(log_snr_s)  # log variances
  alpha_t, alpha_s = -jax.nn.softplus(-log_snr_t) / 2, -jax.nn.softplus(-log_snr_s) / 2  # logs
  of_x_t, of_x0 = jnp.exp(gap + alpha_s - alpha_t), -jnp.expm1(gap) * jnp.exp(alpha_s)
  mean = schedules.expand(of_x_t, x_t) * x_t + schedules.expand(of_x0, x0) * x0
  noise = (
    sigma_s if large == 0 else sigma_t if large == 1 else large * sigma_t + (1 - large) * sigma_s
  )
  return mean, jnp.log(-jnp.expm1(gap)) + noise
