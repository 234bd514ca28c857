"""Samplers: noise in, images out.

`denoise` is EDM's denoise(x, sigma) -> x0 with x = x0 + sigma eps, sigma [B]. `sigmas` [N] are the
falling levels that the N steps start from (`schedules.karras_sigmas`); the last step goes to 0. The
noise x is [B, ...] at level sigmas[0], which is sigmas[0] times normal noise. On another schedule
the levels are sigma / alpha and x is x_t / alpha; `steps.runge_kutta_2` follows its own time.

With `path`, a sampler returns all its states, [N + 1, B, ...]: x at every level, the samples last.
"""

import functools

import jax
import jax.numpy as jnp

from distill_jax.diffusion.steps import (
  Churn,
  Denoise,
  FlowMap,
  ancestral_down,
  churned,
  ddim_map,
  euler_step,
  heun_step,
  integrate,
  integrate_noisy,
  per_example,
  renoised_step,
  sigma_velocity,
)


def euler(denoise: Denoise, x: jax.Array, sigmas: jax.Array, *, path: bool = False) -> jax.Array:
  """N Euler steps of the probability-flow ODE, one denoising each: deterministic DDIM.

  Song, Meng, Ermon, Denoising Diffusion Implicit Models (arXiv:2010.02502).

  Returns:
    Clean samples shaped like x.
  """
  step = functools.partial(euler_step, sigma_velocity(denoise))
  return integrate(step, x, _to_zero(sigmas), path=path)


def heun(denoise: Denoise, x: jax.Array, sigmas: jax.Array, *, path: bool = False) -> jax.Array:
  """N - 1 steps of Heun and a last one of Euler, 2 N - 1 denoisings.

  Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models
  (arXiv:2206.00364), Algorithm 1.
  """
  x = integrate(functools.partial(heun_step, sigma_velocity(denoise)), x, sigmas, path=path)
  return _last(denoise, x, sigmas[-1], path)


def stochastic_heun(
  denoise: Denoise, x: jax.Array, sigmas: jax.Array, key: jax.Array, churn: Churn
) -> jax.Array:
  """`heun` with fresh noise before each step.

  Karras et al. (arXiv:2206.00364), Algorithm 2.

  Args:
    denoise, x, sigmas: see above.
    key: of the noise.
    churn: how much of it, and where.
  """
  n, velocity = len(sigmas), sigma_velocity(denoise)

  def step(x, sigma, sigma_next, noise):
    x, level = churned(x, sigma, noise, churn, n)
    return heun_step(velocity, x, level, sigma_next)

  key, last = jax.random.split(key)
  x = integrate_noisy(step, x, sigmas, key)
  x, level = churned(x, sigmas[-1], jax.random.normal(last, x.shape, x.dtype), churn, n)
  return denoise(x, per_example(level, x))


def dpm_solver_pp_2m(denoise: Denoise, x: jax.Array, sigmas: jax.Array) -> jax.Array:
  """DPM-Solver++(2M): second order from one denoising a step.

  x_next = (sigma_next / sigma) x + (1 - sigma_next / sigma) D with D = x0 + (x0 - last x0) / (2 r),
  r the ratio of the last step to this one in log sigma. The first and last are of first order.

  Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models
  (arXiv:2211.01095), Algorithm 2.
  """
  if len(sigmas) == 1:
    return denoise(x, per_example(sigmas[0], x))

  def step(carry, levels):
    x, last = carry
    before, sigma, after = levels
    x0 = denoise(x, per_example(sigma, x))
    ratio = jnp.log(before / sigma) / jnp.log(sigma / after)
    ahead = x0 + (x0 - last) / (2 * ratio)
    return (ahead + after / sigma * (x - ahead), x0), None

  x0 = denoise(x, per_example(sigmas[0], x))
  x = x0 + sigmas[1] / sigmas[0] * (x - x0)
  x, _ = jax.lax.scan(step, (x, x0), (sigmas[:-2], sigmas[1:-1], sigmas[2:]))[0]
  return denoise(x, per_example(sigmas[-1], x))


def ddim(
  denoise: Denoise, x: jax.Array, sigmas: jax.Array, key: jax.Array, *, eta: float = 0.0
) -> jax.Array:
  """DDIM with eta times the noise of the ancestral sampler; eta = 0 is `euler`.

  Song, Meng, Ermon, Denoising Diffusion Implicit Models (arXiv:2010.02502), eq. 12 and 16.
  """

  def step(x, sigma, sigma_next, noise):
    down = ancestral_down(sigma, sigma_next, eta)
    return renoised_step(ddim_map(denoise), x, sigma, down, sigma_next, noise)

  return integrate_noisy(step, x, _to_zero(sigmas), key)


def ancestral(denoise: Denoise, x: jax.Array, sigmas: jax.Array, key: jax.Array) -> jax.Array:
  """Draws from q(x_next | x, x0 = denoise(x)) in turn: `ddim` with eta = 1.

  Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models (arXiv:2006.11239), with the
  posterior's own variance, the smaller of their two.
  """
  return ddim(denoise, x, sigmas, key, eta=1.0)


def one_step(denoise: Denoise, z: jax.Array, sigma_max: float = 80.0) -> jax.Array:
  """denoise(sigma_max z, sigma_max), z normal noise [B, ...]."""
  return denoise(sigma_max * z, per_example(sigma_max, z))


def few_step(
  denoise: Denoise,
  x: jax.Array,
  sigmas: jax.Array,
  key: jax.Array,
  *,
  sigma_min: float = 0.0,
  path: bool = False,
) -> jax.Array:
  """Denoise, add noise up to the next level, denoise again: one denoising for each level.

  x <- denoise(x, sigma_i) + sqrt(sigma_{i+1}^2 - sigma_min^2) z. Multistep consistency sampling:
  Song, Dhariwal, Chen, Sutskever, Consistency Models (arXiv:2303.01469), Algorithm 1.

  Args:
    denoise: a consistency function, or any one-step generator that takes a noise level.
    x, sigmas: see above.
    key: of the noise.
    sigma_min: the level of what `denoise` returns, epsilon in the paper.
    path: see above.
  """

  def step(x, sigma, sigma_next, noise):
    return renoised_step(lambda x, s, _: denoise(x, s), x, sigma, sigma_min, sigma_next, noise)

  x = integrate_noisy(step, x, sigmas, key, path=path)
  return _last(denoise, x, sigmas[-1], path)


def flow_map(
  network: FlowMap,
  x: jax.Array,
  sigmas: jax.Array,
  key: jax.Array,
  *,
  gamma: float = 0.0,
  path: bool = False,
) -> jax.Array:
  """Jumps of a two-time network to sqrt(1 - gamma^2) of the next level, then noise up to it.

  gamma = 0 follows the ODE, 1 is `few_step`. Kim et al., Consistency Trajectory Models
  (arXiv:2310.02279).

  Args:
    network: (x, sigma [B], sigma_to [B]) -> x at sigma_to.
    x, sigmas: see above.
    key: of the noise.
    gamma: in [0, 1].
    path: see above.
  """

  def step(x, sigma, sigma_next, noise):
    down = (1 - gamma**2) ** 0.5 * sigma_next
    return renoised_step(network, x, sigma, down, sigma_next, noise)

  return integrate_noisy(step, x, _to_zero(sigmas), key, path=path)


def _last(denoise, x, sigma, path):
  """The denoised x, or the path to it."""
  if not path:
    return denoise(x, per_example(sigma, x))
  return jnp.append(x, denoise(x[-1], per_example(sigma, x[-1]))[None], axis=0)


def _to_zero(sigmas):
  return jnp.append(sigmas, jnp.zeros_like(sigmas[:1]))
