"""Noise levels to train at: their quantiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from distill_jax.config import ConfigError
from distill_jax.diffusion import times
from distill_jax.diffusion.schedules import karras_sigma

NOISE = dict(mean=-0.4, std=1.4, low=0.02, high=0.9, sigma_min=0.01, sigma_max=20.0)
Q = jnp.array([0.1, 0.5, 0.9])
Z = jnp.array([-1.2816, 0.0, 1.2816])  # of the normal distribution


@pytest.mark.parametrize(
  "name, quantiles",
  [
    ("lognormal", jnp.exp(-0.4 + 1.4 * Z)),
    ("logit_normal_flow", jnp.exp(-0.4 + 1.4 * Z)),  # sigma = t / (1 - t), logit(t) normal
    ("karras", karras_sigma(0.02 + 0.88 * (1 - Q), 0.01, 20.0)),  # large u is small sigma
    ("uniform_flow", (t := 0.02 + 0.88 * Q) / (1 - t)),
  ],
)
def test_quantiles(name, quantiles):
  sigma = times.draw(ConfigDict(dict(NOISE, name=name)), jax.random.key(0), 50_000)
  assert sigma.shape == (50_000,) and float(sigma.min()) > 0
  np.testing.assert_allclose(jnp.quantile(sigma, Q), quantiles, rtol=0.06)
  if name in ("karras", "uniform_flow"):  # the ends are not passed
    ends = karras_sigma(jnp.array([0.9, 0.02]), 0.01, 20.0)
    low, high = ends if name == "karras" else (0.02 / 0.98, 9.0)
    assert float(low) * 0.999 <= float(sigma.min()) and float(sigma.max()) <= float(high) * 1.001


def test_every_name_is_known_and_another_is_not():
  for name in times.NAMES:
    assert times.draw(ConfigDict(dict(NOISE, name=name)), jax.random.key(0), 3).shape == (3,)
  with pytest.raises(ConfigError, match=r"noise: no 'lognormall'\. Did you mean 'lognormal'"):
    times.draw(ConfigDict(dict(NOISE, name="lognormall")), jax.random.key(0), 3)
