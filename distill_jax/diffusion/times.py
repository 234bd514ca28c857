"""Noise levels to train at, and the guidance scales of networks that are told theirs."""

import jax
import jax.numpy as jnp

from distill_jax.config import ConfigError, did_you_mean
from distill_jax.diffusion.schedules import karras_sigma

NAMES = ("lognormal", "karras", "uniform_flow", "logit_normal_flow")


def draw(config, key: jax.Array, n: int) -> jax.Array:
  """n noise levels sigma (alpha = 1).

  Args:
    config: ConfigDict with `name` and its numbers:
      lognormal: log sigma ~ N(mean, std^2) (Karras et al., arXiv:2206.00364, section 5)
      karras: uniform over the middle of the Karras grid, u in [low, high], from 80 down to 0.002
        (DMD2 takes [0.02, 0.98] of it, SiD [0.2, 1])
      uniform_flow: sigma = t / (1 - t), t uniform in [low, high]
      logit_normal_flow: the same with logit(t) ~ N(mean, std^2) (Esser et al., arXiv:2403.03206)
    key: randomness.
  """
  match config.name:
    case "lognormal" | "logit_normal_flow":  # logit(t) is log(t / (1 - t)) = log sigma
      return jnp.exp(config.mean + config.std * jax.random.normal(key, (n,)))
    case "karras":
      return karras_sigma(_between(config, key, n), config.sigma_min, config.sigma_max)
    case "uniform_flow":
      t = _between(config, key, n)
      return t / (1 - t)
  raise ConfigError(f"noise: no {config.name!r}." + did_you_mean(config.name, NAMES))


def guidance(config, key: jax.Array, n: int) -> jax.Array:
  """n guidance scales, uniform in [low, high] of the config."""
  return _between(config, key, n)


def _between(config, key: jax.Array, n: int) -> jax.Array:
  return jax.random.uniform(key, (n,), minval=config.low, maxval=config.high)
