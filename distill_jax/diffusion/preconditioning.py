"""How published networks F are wrapped into denoisers: x0 = skip x + out F(input x, noise).

Of x = x0 + sigma eps; sigma [B] > 0, coefficients [B]. For reading the weights of others: a network
of ours uses `network.coefficients`. Karras et al., Elucidating the Design Space of Diffusion-Based
Generative Models (arXiv:2206.00364), Table 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion import schedules


class Preconditioning(NamedTuple):
  """Each [B]."""

  skip: jax.Array
  out: jax.Array
  input: jax.Array
  noise: jax.Array  # what the network is told of sigma


def denoised(
  network: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, c: Preconditioning
) -> jax.Array:
  """skip x + out F(input x, noise): x [B, ...] -> x0."""
  skip, out, scale = (schedules.expand(a, x) for a in c[:3])
  return skip * x + out * network(scale * x, c.noise)


def edm(sigma: jax.Array, *, sigma_data: float = 0.5) -> Preconditioning:
  """skip = sd^2 / (s^2 + sd^2), out = s sd / sqrt(s^2 + sd^2), input = 1 / sqrt(s^2 + sd^2)."""
  square = sigma**2 + sigma_data**2
  root = jnp.sqrt(square)
  return Preconditioning(
    sigma_data**2 / square, sigma * sigma_data / root, 1 / root, jnp.log(sigma) / 4
  )


def vp(sigma: jax.Array, *, timesteps: int = 1000) -> Preconditioning:
  """Epsilon networks of the variance-preserving SDE: noise = (timesteps - 1) t(sigma)."""
  time = schedules.vp_linear().time(sigma)
  return _epsilon(sigma, (timesteps - 1) * time)


def ve(sigma: jax.Array) -> Preconditioning:
  """Networks of the variance-exploding SDE: x0 = x + sigma F(x, log(sigma / 2))."""
  one = jnp.ones_like(sigma)
  return Preconditioning(one, sigma, one, jnp.log(sigma / 2))


def iddpm(sigma: jax.Array, *, timesteps: int = 1000) -> Preconditioning:
  """Epsilon networks of Improved DDPM: noise = timesteps - 1 - (index of the closest level)."""
  levels = jnp.asarray(iddpm_sigmas(timesteps), sigma.dtype)
  index = jnp.argmin(jnp.abs(sigma[:, None] - levels), axis=-1)
  return _epsilon(sigma, (timesteps - 1 - index).astype(sigma.dtype))


def iddpm_sigmas(
  timesteps: int = 1000, *, floor: float = 0.001, offset: float = 0.008
) -> np.ndarray:
  """The levels of Improved DDPM's cosine schedule, falling to 0: [timesteps + 1], float64.

  u_M = 0, u_{j-1} = sqrt((u_j^2 + 1) / max(abar_{j-1} / abar_j, floor) - 1), abar_j = sin^2(pi j /
  (2 M (1 + offset))). Karras et al. (arXiv:2206.00364), Table 1; Nichol and Dhariwal
  (arXiv:2102.09672).
  """
  abar = np.sin(0.5 * np.pi * np.arange(timesteps + 1) / timesteps / (offset + 1)) ** 2
  u = np.zeros(timesteps + 1)
  for j in range(timesteps, 0, -1):
    u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(abar[j - 1] / abar[j], floor) - 1)
  return u


def flow_at_angle(angle: jax.Array, *, time_scale: float = 1000.0) -> Preconditioning:
  """A rectified-flow network read at TrigFlow's angle, sigma_data = 1: x is cos x0 + sin eps here.

  The same image on the straight path is x / (cos + sin) at time sin / (cos + sin), where x0 is that
  minus time F. Zheng et al., Large Scale Diffusion Distillation via Score-Regularized
  Continuous-Time Consistency (rCM, arXiv:2510.08431), the authors' code.
  """
  total = jnp.cos(angle) + jnp.sin(angle)
  time = schedules.flow().time(jnp.tan(angle))
  return Preconditioning(1 / total, -time, 1 / total, time_scale * time)


def _epsilon(sigma, noise):
  return Preconditioning(jnp.ones_like(sigma), -sigma, 1 / jnp.sqrt(sigma**2 + 1), noise)
