"""What a student's samples are like, against data that training never saw.

On an exact mixture: log-likelihood, modes and distances; of images: what a classifier says of them
(see measures.py). Of several seeds in one run each value is NAME@SEED. The student's first moving
average is sampled, where it has one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax import method as method_lib
from distill_jax.config import ConfigError
from distill_jax.diffusion import network as network_lib
from distill_jax.diffusion import samplers
from distill_jax.diffusion.schedules import karras_sigmas
from distill_jax.evals import measures


def make(config):
  """Draws `eval_samples` images at every evaluation, with the same noise and labels."""
  data = method_lib.load("data", config.data.name)
  real = data.validation(config, config.eval_samples)
  points = config.data.name == "points"
  draw = jax.jit(lambda params: sample(config, params, real["label"]))
  measure = measures.on_mixture(config) if points else measures.on_images(config)

  def one(params, label):
    return measure(real if label is None else dict(real, label=label), draw(params))

  def evaluate(state, frozen):
    params = next(iter(state["ema"].values()), state["student"])
    params = (params, state.get("label"))  # particles have labels of their own
    if config.seeds == 1:
      return one(*params)
    each = [one(*jax.tree.map(lambda x: x[i], params)) for i in range(config.seeds)]
    return {f"{name}@{i}": v for i, values in enumerate(each) for name, v in values.items()}

  return evaluate


class Trajectory(NamedTuple):
  """What a sampler passes on its way from noise to samples."""

  states: jax.Array  # [S, B, ...], the samples last
  sigmas: jax.Array  # [S], their noise levels, the last 0


def trajectory(config, params, labels) -> Trajectory:
  """Every state of `sample`, scaled to the size of the data: x / sqrt(1 + (sigma / sigma_data)^2).
  Particles have come no way: they are one state."""
  sigmas = jnp.zeros(1)
  if config.sampler.name != "particles":
    sigmas = jnp.append(_levels(config), 0.0)
  states = sample(config, params, labels, path=True)
  scale = 1 / jnp.sqrt(1 + (sigmas / config.models.student.sigma_data) ** 2)
  return Trajectory(states * scale.reshape(-1, *[1] * (states.ndim - 1)), sigmas)


def sample(config, params, labels, *, path: bool = False) -> jax.Array:
  """One image for each label, by `config.sampler`; the noise is always the same. Particles are
  their own samples. With `path`, all states of the sampler: [S, B, ...]."""
  if config.sampler.name == "particles":
    made = params[: len(labels)]
    return made[None] if path else made
  network, given = network_lib.make(config, "student"), config.sampler
  condition = {"label": jnp.asarray(labels)} if network.num_classes else {}
  scale = given.guidance
  if "guidance" in config.models.student.conditions:  # told, in one evaluation
    condition["guidance"], scale = jnp.full(len(labels), scale), 1.0
  z = jax.random.normal(jax.random.key(1), (len(labels), *network.shape))

  def denoise(x, sigma):
    sigma = jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1])
    return network_lib.guided_denoise(network, params, x, sigma, condition, scale)

  def jump(x, sigma, sigma_to):
    sigma, sigma_to = (jnp.full(len(x), 1, x.dtype) * s for s in (sigma, sigma_to))
    return network_lib.flow_map(network, params, x, sigma, sigma_to, condition)

  key, sigmas = jax.random.key(2), _levels(config)
  x = given.sigmas[0] * z
  match given.name:
    case "few_step":
      return samplers.few_step(denoise, x, sigmas, key, path=path)
    case "flow_map":
      return samplers.flow_map(jump, x, sigmas, key, path=path)
    case "euler":
      return samplers.euler(denoise, x, sigmas, path=path)
    case "heun":
      return samplers.heun(denoise, x, sigmas, path=path)
  names = "few_step, flow_map, euler, heun or particles"
  raise ConfigError(f"sampler.name: no {given.name!r}: {names}.")


def _levels(config) -> jax.Array:
  """The levels that the steps of `config.sampler` start from."""
  given = config.sampler
  if given.name == "heun":
    return karras_sigmas(given.steps, config.noise.sigma_min, given.sigmas[0])
  return jnp.array(given.sigmas)
