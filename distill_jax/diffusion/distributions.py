"""Exact distributions by name, with the standard deviation that networks are told.

mixture25: a 5 by 5 grid of narrow modes in the plane, five classes by row
"""

import jax
import jax.numpy as jnp

from distill_jax.config import ConfigError, did_you_mean
from distill_jax.diffusion import analytic

NAMES = ("mixture25",)


def named(name: str) -> analytic.GaussianMixture:
  """The distribution; its arrays are made when asked, so that importing costs nothing."""
  if name == "mixture25":
    return analytic.grid_mixture()
  raise ConfigError(f"No distribution {name!r}." + did_you_mean(name, NAMES))


def draw(name: str, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
  """n points [n, D] and their classes int32 [n]."""
  exact = named(name)
  label_key, key = jax.random.split(key)
  component = jax.random.categorical(label_key, jnp.log(exact.weights), shape=(n,))
  label = exact.labels[component].astype(jnp.int32)
  return exact.sample(key, n, {"label": label}), label
