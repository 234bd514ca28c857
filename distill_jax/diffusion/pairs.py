"""Pairs of a noise and what the teacher's probability-flow ODE makes of it."""

import jax

from distill_jax.diffusion import network as network_lib
from distill_jax.diffusion import samplers, schedules
from distill_jax.diffusion.network import Condition, Network, Params


def endpoint(
  config, network: Network, params: Params, z: jax.Array, condition: Condition
) -> jax.Array:
  """The end of the ODE that starts at sigma_max z, by Heun's method, without gradient.

  Args:
    config: noise.sigma_min and sigma_max, method.solver_steps (N, of 2 N - 1 evaluations) and
      method.guidance.
    network, params: the teacher's.
    z: normal noise [B, ...].
    condition: of the samples.

  Returns:
    Clean samples shaped like z.
  """
  noise, method = config.noise, config.method

  def denoised(x, sigma):
    return network_lib.guided_denoise(network, params, x, sigma, condition, method.guidance)

  sigmas = schedules.karras_sigmas(method.solver_steps, noise.sigma_min, noise.sigma_max)
  return jax.lax.stop_gradient(samplers.heun(denoised, noise.sigma_max * z, sigmas))
