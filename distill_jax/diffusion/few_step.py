"""Students of a few steps: what they see in training is what they will see in sampling.

A few-step student denoises pure noise, adds noise of the next lower level, denoises that, and so on
through `sigmas`. Backward simulation runs that without gradient, and the student is trained at a
random step of it: no data is needed, and no gap is left between training and use.

Yin et al., Improved Distribution Matching Distillation for Fast Image Synthesis
(arXiv:2405.14867), section 4.5.
"""

import jax
import jax.numpy as jnp

from distill_jax.diffusion import network as network_lib
from distill_jax.diffusion.network import Condition, Network, Params
from distill_jax.losses.denoising import expand


def simulate(
  network: Network,
  params: Params,
  key: jax.Array,
  n: int,
  sigmas: tuple[float, ...],
  condition: Condition,
) -> tuple[jax.Array, jax.Array]:
  """Inputs of the student at random steps of its own sampling, without gradient.

  Args:
    key: of the noise and the steps.
    n: examples.
    sigmas: descending noise levels, one for each step; of one level this is pure noise.

  Returns:
    x [n, ...] and its noise level [n], drawn uniformly of `sigmas` for each example.
  """
  levels = jnp.array(sigmas)
  key, key_step = jax.random.split(key)
  noise = jax.random.normal(key, (len(sigmas), n, *network.shape))
  if len(sigmas) == 1:
    return levels[0] * noise[0], jnp.full(n, levels[0])
  step = jax.random.randint(key_step, (n,), 0, len(sigmas))

  def body(x, inputs):
    sigma, lower, noise = inputs
    x0 = network_lib.denoise(network, params, x, jnp.full(n, sigma), condition)
    return x0 + lower * noise, x

  last, earlier = jax.lax.scan(body, levels[0] * noise[0], (levels[:-1], levels[1:], noise[1:]))
  path = jax.lax.stop_gradient(jnp.concatenate([earlier, last[None]]))
  return jnp.take_along_axis(path, expand(step, last)[None], axis=0)[0], levels[step]
