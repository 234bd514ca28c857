"""What a student's samples are like, against data that training never saw.

On an exact mixture: log-likelihood and coverage; elsewhere and there: distances between the two
sets of samples (see distances.py). Of several seeds in one run each value is NAME@SEED. The student's first moving average is sampled, where it has one.
"""

import jax
import jax.numpy as jnp

from distill_jax import method as method_lib
from distill_jax.config import ConfigError
from distill_jax.diffusion import distributions, samplers
from distill_jax.diffusion import network as network_lib
from distill_jax.diffusion.schedules import karras_sigmas
from distill_jax.evals import distances


def make(config):
  """Draws `eval_samples` images at every evaluation, with the same noise and labels."""
  data = method_lib.load("data", config.data.name)
  real = data.validation(config, config.eval_samples)
  draw = jax.jit(lambda params: sample(config, params, real["label"]))
  measure = _on_mixture(config) if config.data.name == "points" else _on_images(config)

  def evaluate(state, frozen):
    params = next(iter(state["ema"].values()), state["student"])
    if config.seeds == 1:
      return measure(real, draw(params))
    each = [
      measure(real, draw(jax.tree.map(lambda x: x[i], params)))  # noqa: B023
      for i in range(config.seeds)
    ]
    return {f"{name}@{i}": v for i, values in enumerate(each) for name, v in values.items()}

  return evaluate


def sample(config, params, labels) -> jax.Array:
  """One image for each label, by `config.sampler`; the noise is always the same."""
  network, given = network_lib.make(config, "student"), config.sampler
  condition = {"label": jnp.asarray(labels)} if network.num_classes else {}
  z = jax.random.normal(jax.random.key(1), (len(labels), *network.shape))

  def denoise(x, sigma):
    sigma = jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1])
    return network_lib.guided_denoise(network, params, x, sigma, condition, given.guidance)

  def jump(x, sigma, sigma_to):
    sigma, sigma_to = (jnp.full(len(x), 1, x.dtype) * s for s in (sigma, sigma_to))
    return network_lib.flow_map(network, params, x, sigma, sigma_to, condition)

  key, sigmas = jax.random.key(2), jnp.array(given.sigmas)
  x = sigmas[0] * z
  match given.name:
    case "few_step":
      return samplers.few_step(denoise, x, sigmas, key)
    case "flow_map":
      return samplers.flow_map(jump, x, sigmas, key)
    case "heun":
      levels = karras_sigmas(given.steps, config.noise.sigma_min, given.sigmas[0])
      return samplers.heun(denoise, x, levels)
  raise ConfigError(f"sampler.name: no {given.name!r}: few_step, heun or flow_map.")


def _on_mixture(config):
  """Of generated points: their likelihood and modes by the exact density, and how far they are from
  as many points of it.

  nll_gap          E[-log p(x)] - entropy of p, nats: how unlikely they are; 0 at best, and below 0
                   where modes are missing or too narrow
  sliced_w2        root of the mean over directions of the squared 1-D Wasserstein distance
  energy           energy distance
  modes            how many of the modes have at least a fifth of their share of the good points
  mode_kl          KL of the modes' shares of the good points from the true ones, nats
  precision        the share of good points, within three standard deviations of a mode
  right_class      the share of points in a mode of the class that was asked for
  """
  exact = distributions.named(config.data.distribution)

  @jax.jit
  def measure(real, made):
    modes = distances.mode_coverage(made, exact.means, exact.stds)
    true = exact.weights / jnp.sum(exact.weights)
    log_ratio = jnp.log(jnp.where(modes.shares > 0, modes.shares / true, 1))
    owner = jnp.argmax(exact.responsibilities(made), axis=1)
    directions = distances.random_directions(jax.random.key(3), made.shape[1], 64)
    return dict(
      nll_gap=jnp.mean(exact.log_prob(real["x"])) - jnp.mean(exact.log_prob(made)),
      sliced_w2=distances.sliced_wasserstein(made, real["x"], directions),
      energy=distances.energy_distance(made, real["x"]),
      modes=jnp.sum(modes.shares > 0.2 * true),
      mode_kl=jnp.sum(modes.shares * log_ratio),
      precision=modes.quality,
      right_class=jnp.mean(exact.labels[owner] == real["label"]),
    )

  return lambda real, made: {k: float(v) for k, v in measure(real, made).items()}


def _on_images(config):
  """Until a classifier is named, distances of pixels: see `features`."""

  def measure(real, made):
    x, y = (a.reshape(len(a), -1) for a in (made, real["x"]))
    return dict(pixel_energy=float(distances.energy_distance(x, y)))

  return measure
