"""BOOT at its optimum: the teacher's DDIM from each noise, as the image that its points show."""

import math

import jax.numpy as jnp
import numpy as np


def test_the_signal_of_the_discrete_flow_has_no_gradient(exact):
  """On a Gaussian x - mean scales with eps, so y(eps, s) = mean + a_s (20 eps - mean)."""
  low, high = math.atan(0.01), math.atan(20.0)
  ratios = np.tan(low + np.arange(33) / 32 * (high - low))  # sigma / alpha
  # x / alpha = y + ratio eps goes along DDIM's steps; at the noisiest point it is 20 eps, while
  # BOOT's starts at the teacher's image of 20 eps and adds the noise to that
  on_eps, offset = np.zeros(33), np.zeros(33)
  kept = exact.std**2 / (exact.std**2 + ratios**2)
  on_eps[-1], offset[-1] = kept[-1] * 20, exact.mean * (1 - kept[-1])
  for i in range(32, 0, -1):
    k = ratios[i - 1] / ratios[i]
    on_eps[i - 1] = (1 - k) * kept[i] * (on_eps[i] + ratios[i]) + k * on_eps[i]
    image = exact.mean + kept[i] * (offset[i] - exact.mean)
    offset[i - 1] = (1 - k) * image + k * offset[i]
  table = jnp.asarray(np.stack([on_eps, offset]), jnp.float32)
  angles = jnp.arctan(jnp.asarray(ratios, jnp.float32) / exact.network(exact.denoiser).sigma_data)

  def signal(params, x, sigma, condition):
    i = jnp.argmin(jnp.abs(condition["second"][:, None] - angles), axis=1)
    return table[0, i][:, None] * x / 20 + table[1, i][:, None]

  run = exact.play("boot", student=exact.network(signal))
  other = exact.play("boot", student=exact.network(exact.denoiser))
  assert run.loss < 1e-6 < 1e-4 < other.loss
  assert run.grad_norm < 1e-2 * other.grad_norm
  assert other.metrics["boundary"] < 1e-8  # the teacher itself meets that
