"""Optimisers and learning-rate schedules, which are optax's, and moving averages of parameters,
from a config."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from distill_jax.config import ConfigError, did_you_mean

OPTIMIZERS = ("adamw", "adam", "sgd", "lion", "lamb")
SCHEDULES = ("constant", "linear", "cosine", "wsd")


def make(config, steps: int) -> optax.GradientTransformation:
  """Clipping, the optimiser, weight decay on what the mask leaves, and the schedule.

  Weight decay is decoupled; sgd's is added to the gradient, as is usual.

  Args:
    config: ConfigDict with name, lr, schedule, warmup (steps), final (fraction of lr at the end),
      b1 (also SGD's momentum), b2, eps, weight_decay, no_decay (regex of paths that are not
      decayed), clip_norm (0: none).
    steps: length of the run, the horizon of the schedule.
  """
  schedule = make_schedule(config, steps)

  def decays(params):
    def keep(path, x):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      return x.ndim > 1 and not re.search(config.no_decay, name)

    return jax.tree_util.tree_map_with_path(keep, params)

  decay = dict(weight_decay=config.weight_decay, mask=decays)
  match config.name:
    case "adamw":
      tx = optax.adamw(schedule, config.b1, config.b2, config.eps, **decay)
    case "adam":
      if config.weight_decay:
        raise ConfigError("optim.weight_decay: adam has none, adamw does.")
      tx = optax.adam(schedule, config.b1, config.b2, config.eps)
    case "sgd":
      sgd = optax.sgd(schedule, momentum=config.b1 or None)
      tx = optax.chain(optax.add_decayed_weights(**decay), sgd) if config.weight_decay else sgd
    case "lion":
      tx = optax.lion(schedule, config.b1, config.b2, **decay)
    case "lamb":
      tx = optax.lamb(schedule, config.b1, config.b2, config.eps, **decay)
    case _:
      raise ConfigError(f"No optimiser {config.name!r}." + did_you_mean(config.name, OPTIMIZERS))
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), tx) if config.clip_norm else tx


def make_schedule(config, steps: int) -> optax.Schedule:
  """Linear warm-up, then constant, linear, cosine, or warm-up-stable-decay (the last fifth falls
  linearly)."""
  warm, end = min(config.warmup, steps), config.lr * config.final
  rest = max(steps - warm, 1)
  match config.schedule:
    case "constant":
      main = optax.constant_schedule(config.lr)
    case "linear":
      main = optax.linear_schedule(config.lr, end, rest)
    case "cosine":
      main = optax.cosine_decay_schedule(config.lr, rest, config.final)
    case "wsd":
      fall = max(rest // 5, 1)
      main = optax.linear_schedule(config.lr, end, fall, rest - fall)
    case _:
      raise ConfigError(
        f"No schedule {config.schedule!r}." + did_you_mean(config.schedule, SCHEDULES)
      )
  schedule = optax.join_schedules([optax.linear_schedule(0.0, config.lr, warm), main], [warm])
  return lambda count: schedule(count + 1)  # the first update is not empty, the last is at the end


def ema_init(averages: tuple[tuple[str, float], ...], params: Any) -> dict[str, Any]:
  """One copy of the parameters, at least float32, for each average that `config.ema` names, as
  "kind_value"."""

  def copy(x):
    return jnp.array(x, jnp.promote_types(x.dtype, jnp.float32))

  return {_name(*average): jax.tree.map(copy, params) for average in averages}


def ema_update(
  averages: tuple[tuple[str, float], ...], ema: dict[str, Any], params: Any, step: jax.Array
) -> dict[str, Any]:
  """The averages after update number `step` (the first is 0).

  Args:
    averages: (kind, value) pairs. ("constant", b): decay b. ("half_life", n): decay 2^(-1/n), n in
      steps. ("power", g): the power-function profile, decay (1 - 1/t)^(g + 1) at t = step + 1;
      Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models
      (arXiv:2312.02696), eq. 127.
  """

  def update(kind, value):
    weight = _new_weight(kind, value, step)
    old = ema[_name(kind, value)]
    return jax.tree.map(lambda old, new: old + weight * (new.astype(old.dtype) - old), old, params)

  return {_name(*average): update(*average) for average in averages}


def _name(kind: str, value: float) -> str:
  return f"{kind}_{value}"


def _new_weight(kind: str, value: float, step: jax.Array) -> jax.Array:
  """1 - decay of update number `step`, without the rounding of a decay close to 1."""
  match kind:
    case "constant":
      return jnp.float32(1 - value)
    case "half_life":
      return jnp.float32(-math.expm1(-math.log(2) / value))
    case "power":
      t = jnp.asarray(step, jnp.float32) + 1
      return -jnp.expm1((value + 1) * jnp.log1p(-1 / t))
    case _:
      raise ConfigError(f"No moving average {kind!r}: constant, half_life or power.")
