"""Backward simulation: the levels of the student's own sampling, and what it sees at each."""

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion import few_step
from distill_jax.diffusion.network import Network

SIGMAS = (20.0, 4.0, 1.0)


def constant(value=3.0):
  """A network that always sees the image `params`: of sigma_data 1."""

  def raw(params, x, angle, condition):
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    return (cos * x - params) / sin, x[:, None]

  return Network(lambda key: jnp.float32(value), raw, (2,), 1.0, 0)


def test_each_level_is_as_likely_and_has_the_image_plus_its_noise():
  n = 6000
  simulate = jax.jit(lambda p: few_step.simulate(constant(), p, jax.random.key(0), n, SIGMAS, {}))
  x, sigma = simulate(3.0)
  assert x.shape == (n, 2) and sigma.shape == (n,)
  for level in SIGMAS:
    here = x[np.asarray(sigma == level)]
    assert abs(len(here) / n - 1 / 3) < 0.03
    image = 0.0 if level == SIGMAS[0] else 3.0  # the first step sees pure noise
    np.testing.assert_allclose(here.mean(0) / level, jnp.full(2, image / level), atol=0.06)
    np.testing.assert_allclose((here - here.mean(0)).std(0) / level, jnp.ones(2), rtol=0.05)


def test_one_level_is_pure_noise_and_there_is_no_gradient():
  x, sigma = few_step.simulate(constant(), 3.0, jax.random.key(0), 4000, (20.0,), {})
  np.testing.assert_array_equal(sigma, jnp.full(4000, 20.0))
  np.testing.assert_allclose(x.std(0), jnp.full(2, 20.0), rtol=0.05)

  def total(params):
    return few_step.simulate(constant(), params, jax.random.key(0), 64, SIGMAS, {})[0].sum()

  assert float(jax.grad(total)(3.0)) == 0
