"""One step of a sampler, and scans of steps over a grid of times.

A denoiser is EDM's denoise(x, sigma) -> x0 with x = x0 + sigma eps and sigma [B]; a velocity is
velocity(x, t) -> dx/dt with t a scalar. Levels of noise and times are scalars, one for the batch.
What is random in a step is an argument.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.diffusion import schedules
from distill_jax.diffusion.schedules import Schedule

Denoise = Callable[[jax.Array, jax.Array], jax.Array]  # (x [B, ...], sigma [B]) -> x0
Velocity = Callable[[jax.Array, jax.Array], jax.Array]  # (x [B, ...], time) -> dx/dtime
FlowMap = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (x, sigma [B], sigma_to [B])
Step = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (x, time, next time) -> x


class Churn(NamedTuple):
  """Noise that is added before a step; Karras et al. (arXiv:2206.00364), Algorithm 2."""

  total: float = 0.0  # S_churn: over all steps
  low: float = 0.0  # S_min and S_max: only at levels from low to high
  high: float = float("inf")
  noise: float = 1.0  # S_noise: its standard deviation


def sigma_velocity(denoise: Denoise) -> Velocity:
  """dx / dsigma = (x - denoise(x, sigma)) / sigma, the probability-flow ODE in the noise level.

  Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models
  (arXiv:2206.00364), Algorithm 1.
  """
  return lambda x, sigma: (x - denoise(x, per_example(sigma, x))) / sigma


def schedule_velocity(denoise: Denoise, schedule: Schedule) -> Velocity:
  """d x_t / dt = alpha' x0 + sigma' eps, the probability-flow ODE on a schedule, where sigma > 0.

  x0 = denoise(x_t / alpha, sigma / alpha) and eps = (x_t - alpha x0) / sigma.
  """

  def velocity(x, t):
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    alpha_rate, sigma_rate = schedules.rates(schedule, t)
    x0 = denoise(x / alpha, per_example(sigma / alpha, x))
    return alpha_rate * x0 + sigma_rate / sigma * (x - alpha * x0)

  return velocity


def ddim_map(denoise: Denoise) -> FlowMap:
  """The flow map of one Euler step: x0 + sigma_to / sigma (x - x0) with x0 = denoise(x, sigma)."""

  def flow_map(x, sigma, sigma_to):
    x0 = denoise(x, sigma)
    return x0 + schedules.expand(sigma_to / sigma, x) * (x - x0)

  return flow_map


def euler_step(velocity: Velocity, x: jax.Array, t: jax.Array, t_next: jax.Array) -> jax.Array:
  """x + (t_next - t) velocity(x, t)."""
  return x + (t_next - t) * velocity(x, t)


def heun_step(
  velocity: Velocity, x: jax.Array, t: jax.Array, t_next: jax.Array, *, stage: float = 1.0
) -> jax.Array:
  """A second-order step whose second velocity is at t + stage (t_next - t).

  x + h ((1 - 1 / (2 stage)) v1 + v2 / (2 stage)): Heun's at stage 1, the midpoint method at 1/2.
  Karras et al. (arXiv:2206.00364), Algorithm 3.
  """
  h = t_next - t
  first = velocity(x, t)
  second = velocity(x + stage * h * first, t + stage * h)
  return x + h * ((1 - 1 / (2 * stage)) * first + 1 / (2 * stage) * second)


def midpoint_step(
  velocity: Velocity, x: jax.Array, sigma: jax.Array, sigma_next: jax.Array
) -> jax.Array:
  """x + (sigma_next - sigma) v at the middle level in sigma^(1/3); sigma_next may be 0.

  After DPM-Solver-2 (Lu et al., arXiv:2206.00927), in the form of the authors' code of Consistency
  Models (Song et al., arXiv:2303.01469).
  """
  middle = ((jnp.cbrt(sigma) + jnp.cbrt(sigma_next)) / 2) ** 3
  there = euler_step(velocity, x, sigma, middle)
  return x + (sigma_next - sigma) * velocity(there, middle)


def churned(
  x: jax.Array, sigma: jax.Array, noise: jax.Array, churn: Churn, steps: int
) -> tuple[jax.Array, jax.Array]:
  """x with noise added up to the level (1 + gamma) sigma, and that level.

  gamma = min(total / steps, sqrt(2) - 1) where low <= sigma <= high, else 0.
  """
  gamma = min(churn.total / steps, 2**0.5 - 1)
  level = sigma * jnp.where((churn.low <= sigma) & (sigma <= churn.high), 1 + gamma, 1.0)
  return x + jnp.sqrt(level**2 - sigma**2) * churn.noise * noise, level


def renoised_step(
  flow_map: FlowMap,
  x: jax.Array,
  sigma: jax.Array,
  sigma_down: jax.Array | float,
  sigma_next: jax.Array,
  noise: jax.Array,
) -> jax.Array:
  """flow_map(x, sigma, sigma_down) + sqrt(sigma_next^2 - sigma_down^2) noise.

  Down and up again: an ODE step where sigma_down is sigma_next, a consistency model's where it is
  the level of its clean images, DDIM with eta and trajectory consistency between them.
  """
  x = flow_map(x, per_example(sigma, x), per_example(sigma_down, x))
  return x + jnp.sqrt(jnp.maximum(sigma_next**2 - sigma_down**2, 0)) * noise


def ancestral_down(sigma: jax.Array, sigma_next: jax.Array, eta: float = 1.0) -> jax.Array:
  """The level to step down to before noise goes back on.

  sqrt(sigma_next^2 - up^2) with up = eta sigma_next sqrt(1 - sigma_next^2 / sigma^2).
  """
  up = eta * sigma_next * jnp.sqrt(jnp.maximum(1 - (sigma_next / sigma) ** 2, 0))
  return jnp.sqrt(jnp.maximum(sigma_next**2 - up**2, 0))


def integrate(step: Step, x: jax.Array, times: jax.Array, *, path: bool = False) -> jax.Array:
  """x after step(x, times[i], times[i + 1]) for every i; times [N + 1].

  With `path`, all states, the first being x: [N + 1, B, ...].
  """
  return _scan(lambda x, t: step(x, *t), x, (times[:-1], times[1:]), path)


def integrate_noisy(
  step: Callable[..., jax.Array],
  x: jax.Array,
  times: jax.Array,
  key: jax.Array,
  *,
  path: bool = False,
) -> jax.Array:
  """`integrate` of step(x, t, t_next, noise), normal noise of x's shape from the key."""

  def noisy(x, inputs):
    t, t_next, i = inputs
    noise = jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
    return step(x, t, t_next, noise)

  return _scan(noisy, x, (times[:-1], times[1:], jnp.arange(len(times) - 1)), path)


def _scan(step, x, inputs, path):
  def keep(x, given):
    x = step(x, given)
    return x, x if path else None

  last, states = jax.lax.scan(keep, x, inputs)
  return jnp.append(x[None], states, axis=0) if path else last


def runge_kutta_2(
  velocity: Velocity, x: jax.Array, times: jax.Array, *, stage: float = 1.0
) -> jax.Array:
  """N - 1 times `heun_step` and a last Euler step, so nothing is evaluated at the last time.

  Args:
    velocity: `sigma_velocity`, `schedule_velocity`, or a network that predicts it.
    x: [B, ...] at times[0].
    times: [N + 1].
    stage: of `heun_step`.

  Returns:
    x at times[-1].
  """
  x = integrate(lambda x, t, s: heun_step(velocity, x, t, s, stage=stage), x, times[:-1])
  return euler_step(velocity, x, times[-2], times[-1])


def per_example(sigma: jax.Array | float, x: jax.Array) -> jax.Array:
  """One level for the whole batch, as denoisers take it: [B]."""
  return jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1])
