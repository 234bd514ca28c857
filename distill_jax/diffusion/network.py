"""Networks of the diffusion family, and one network seen on any schedule in any words.

A network predicts F at TrigFlow's angle:

  s = sqrt(sigma^2 + alpha^2 sigma_data^2),  x_hat = x_t sigma_data / s,
  angle = atan2(sigma, alpha sigma_data)
  x0 = cos(angle) x_hat - sin(angle) sigma_data F
  sigma_data eps = sin(angle) x_hat + cos(angle) sigma_data F

which is EDM's preconditioning (F is minus theirs) and d x_hat / d angle = sigma_data F. Everything
else that a network can be asked, on any schedule, is a combination of x_t and F whose coefficients
are finite wherever the answer is.

References:
  Lu and Song, Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models
  (arXiv:2410.11081), section 3 and appendix B.
  Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models
  (arXiv:2206.00364), section 5.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from distill_jax import method as method_lib
from distill_jax.diffusion.schedules import Schedule, flow, guided, rates
from distill_jax.losses.denoising import expand
from distill_jax.models import adapters

Condition = dict[str, jax.Array]
Params = Any


class Network(NamedTuple):
  """`raw` is F(params, x_hat / sigma_data, angle, condition) and features [B, N, C]."""

  init: Callable[[jax.Array], Params]
  raw: Callable[[Params, jax.Array, jax.Array, Condition], tuple[jax.Array, jax.Array]]
  shape: tuple[int, ...]  # of one example
  sigma_data: float
  num_classes: int  # the null label is this number; 0: no labels


def default_config() -> ConfigDict:
  """A network's keys; `name` is a file under distill_jax/models, or `analytic`."""
  return ConfigDict(
    dict(
      name="mlp",  # mlp | unet | dit | analytic
      sigma_data=0.5,  # standard deviation of the data
      width=128,
      depth=3,
      multipliers=(1, 2),  # of the width, a resolution each: unet
      attention=(4,),  # resolutions (height) with attention: unet
      heads=2,  # unet, dit
      patch=2,  # dit
      num_classes=0,
      conditions=(),  # of models/embedding.py
      vector_width=0,
      dtype="float32",  # of products and activations; parameters, time and output are float32
      distribution="mixture25",  # of an analytic teacher, see diffusion/distributions.py
      lora_rank=0,  # above 0 only factors of this rank learn: models/adapters.py
      lora_pattern="kernel$",  # paths of the kernels that have factors
    )
  )


def make(config, name: str) -> Network:
  """The network `name` of config.models, for examples of `config.data.shape`.

  With `lora_rank` its parameters are `base`, which has no gradient, and `factors`. The optimiser's
  weight decay would reach the base all the same: leave it at 0.
  """
  given, shape = config.models[name], tuple(config.data.shape)
  if given.name == "analytic":
    return _analytic(given, shape)
  module = method_lib.load("models", given.name)

  def raw(params, x, angle, condition):
    if given.lora_rank:
      params = adapters.merge(jax.lax.stop_gradient(params["base"]), params["factors"])
    time = params["embed"]  # in bfloat16 neighbouring times would be one
    params = jax.tree.map(lambda p: p.astype(given.dtype), params) | dict(embed=time)
    f, features = module.apply(given, params, x.astype(given.dtype), angle, condition)
    return f.astype(x.dtype), features

  def init(key):
    params = module.init(given, shape, key)
    if not given.lora_rank:
      return params
    factors = adapters.init(params, jax.random.fold_in(key, 1), given.lora_rank, given.lora_pattern)
    return dict(base=params, factors=factors)

  return Network(init, raw, shape, given.sigma_data, given.num_classes)


def _analytic(config, shape: tuple[int, ...]) -> Network:
  """An exact denoiser as a network without parameters."""
  from distill_jax.diffusion import distributions

  exact = distributions.named(config.distribution)

  def raw(params, x, angle, condition):
    angle = jnp.clip(angle, 1e-4, jnp.pi / 2 - 1e-4)  # sigma from sigma_data / 1e4 to its inverse
    cos, sin = (expand(f(angle), x) for f in (jnp.cos, jnp.sin))
    given = {k: v for k, v in condition.items() if k == "label"}
    x_hat = x * config.sigma_data
    x0 = exact.denoise(x_hat / cos, config.sigma_data * jnp.tan(angle), given)
    return (cos * x_hat - x0) / (sin * config.sigma_data), x[:, None]

  return Network(lambda key: {}, raw, shape, config.sigma_data, config.num_classes)


def predict(
  network: Network,
  params: Params,
  x_t: jax.Array,
  t: jax.Array,
  schedule: Schedule,
  target: str,
  condition: Condition | None = None,
) -> jax.Array:
  """What the network says of x_t [B, ...] at times t [B] of a schedule: x0, epsilon or flow.

  `flow` is d x_t / dt of the probability-flow ODE. F and v follow from `schedules.convert`.
  """
  return _read(network, params, x_t, t, schedule, target, condition)[0]


def _read(network, params, x_t, t, schedule, target, condition):
  alpha, sigma = schedule.alpha(t), schedule.sigma(t)
  on_x, on_f, scale = coefficients(alpha, sigma, network.sigma_data, target, rates(schedule, t))
  angle = jnp.arctan2(sigma, alpha * network.sigma_data)
  f, features = network.raw(params, x_t / expand(scale, x_t), angle, condition or {})
  return expand(on_x, x_t) * x_t + expand(on_f, x_t) * f, features


def coefficients(
  alpha: jax.Array,
  sigma: jax.Array,
  sigma_data: float,
  target: str,
  rates: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """a, b and s of `target` = a x_t + b F(x_t / s)."""
  square = sigma**2 + (alpha * sigma_data) ** 2
  scale = jnp.sqrt(square)
  x0 = (alpha * sigma_data**2 / square, -sigma * sigma_data / scale)
  epsilon = (sigma / square, alpha * sigma_data / scale)
  if target == "x0":
    return x0[0], x0[1], scale
  if target == "epsilon":
    return epsilon[0], epsilon[1], scale
  if target == "flow":
    on_x, on_f = (rates[0] * a + rates[1] * b for a, b in zip(x0, epsilon, strict=True))
    return on_x, on_f, scale
  raise ValueError(f"A network is asked for x0, epsilon or flow, not for {target!r}")


def denoise(
  network: Network,
  params: Params,
  x: jax.Array,
  sigma: jax.Array,
  condition: Condition | None = None,
) -> jax.Array:
  """The EDM denoiser: x0 of x = x0 + sigma eps; x [B, ...], sigma [B]."""
  return denoise_with_features(network, params, x, sigma, condition)[0]


def denoise_with_features(
  network: Network,
  params: Params,
  x: jax.Array,
  sigma: jax.Array,
  condition: Condition | None = None,
) -> tuple[jax.Array, jax.Array]:
  """x0, and the network's features [B, N, C] for a discriminator's head."""
  one, zero = jnp.ones_like(sigma), jnp.zeros_like(sigma)
  on_x, on_f, scale = coefficients(one, sigma, network.sigma_data, "x0", (zero, one))
  angle = jnp.arctan2(sigma, one * network.sigma_data)
  f, features = network.raw(params, x / expand(scale, x), angle, condition or {})
  return expand(on_x, x) * x + expand(on_f, x) * f, features


def feature_width(network: Network) -> int:
  """C, the size of a network's features [B, N, C]; nothing is computed."""

  def features(key):
    return network.raw(network.init(key), jnp.zeros((1, *network.shape)), jnp.zeros(1), {})[1]

  return jax.eval_shape(features, jax.random.key(0)).shape[-1]


def guided_denoise(
  network: Network,
  params: Params,
  x: jax.Array,
  sigma: jax.Array,
  condition: Condition,
  scale: float | jax.Array,
) -> jax.Array:
  """The denoiser with classifier-free guidance; both halves run as one batch. A scale of exactly 1
  costs one evaluation."""
  if isinstance(scale, float | int) and scale == 1:
    return denoise(network, params, x, sigma, condition)
  null = null_condition(network, condition)
  both = {k: jnp.concatenate([null[k], v]) for k, v in condition.items()}
  x, sigma = (jnp.concatenate([a, a]) for a in (x, sigma))
  unconditional, conditional = jnp.split(denoise(network, params, x, sigma, both), 2)
  return guided(unconditional, conditional, scale)


def null_condition(network: Network, condition: Condition) -> Condition:
  """The condition with its labels (and vectors) taken away."""
  null = dict(condition)
  if "label" in condition:
    null["label"] = jnp.full_like(condition["label"], network.num_classes)
  if "vector" in condition:
    null["vector"] = jnp.zeros_like(condition["vector"])
  return null


def generate(
  network: Network,
  params: Params,
  z: jax.Array,
  sigma: float,
  condition: Condition | None = None,
) -> jax.Array:
  """A one-step generator: the denoised image of pure noise sigma z."""
  sigmas = jnp.full(z.shape[:1], sigma, z.dtype)
  return denoise(network, params, sigma * z, sigmas, condition)


def average_velocity(
  network: Network,
  params: Params,
  x_t: jax.Array,
  t: jax.Array,
  r: jax.Array,
  schedule: Schedule,
  condition: Condition | None = None,
) -> jax.Array:
  """u(x_t, t, r) of a network that hears of a second time: what `flow` is where r = t.

  x_r = x_t - (t - r) u(x_t, t, r) on the same path. Geng et al., Mean Flows for One-step Generative
  Modeling (arXiv:2505.13447), eq. 3.
  """
  second = jnp.arctan2(schedule.sigma(r), schedule.alpha(r) * network.sigma_data)
  condition = dict(condition or {}, second=second)
  return predict(network, params, x_t, t, schedule, "flow", condition)


def flow_map(
  network: Network,
  params: Params,
  x: jax.Array,
  sigma: jax.Array,
  sigma_to: jax.Array,
  condition: Condition | None = None,
) -> jax.Array:
  """From one noise level to a lower one by the average velocity of rectified flow; alpha = 1."""
  t, r = sigma / (1 + sigma), sigma_to / (1 + sigma_to)
  z = x / expand(1 + sigma, x)
  u = average_velocity(network, params, z, t, r, flow(), condition)
  return (z - expand(t - r, x) * u) * expand(1 + sigma_to, x)


def params(config, name: str, key: jax.Array, pretrained: dict[str, Any]) -> Params:
  """A network's parameters. A student or a fake score begins as `pretrained.start`, or else as the
  teacher, if they have its architecture but for conditions that it does not hear of; else random.
  """
  fresh = make(config, name).init(key)
  names = ("teacher",) if name == "teacher" else (name, "start", "teacher")
  source = next((pretrained[n] for n in names if n in pretrained), None)
  if source is not None and config.models[name].lora_rank and "factors" not in source:
    return dict(fresh, base=graft(fresh["base"], source))
  return fresh if source is None else graft(fresh, source)


def graft(fresh: Params, source: Params) -> Params:
  """`fresh` with the arrays of `source` in their places; as it is if any of those has another
  shape: a smaller student starts from nothing.

  A network that hears of one more condition than the one that it starts from keeps that embedding
  as it is born, at 0.
  """
  flat = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(source)}
  paths = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(fresh)}
  if any(name in paths and paths[name].shape != x.shape for name, x in flat.items()):
    return fresh

  def pick(path, x):
    return jnp.asarray(flat.get(jax.tree_util.keystr(path), x), x.dtype)

  return jax.tree_util.tree_map_with_path(pick, fresh)
