"""What diffusion methods share: networks that learn, each with its optimiser, and who moves when.

A batch has x [B, ...] and, where there are classes, label int32 [B]. The state holds `student`,
`opt`, `ema`, and `NAME`, `NAME_opt` for each further player (`fake`, `discriminator`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from distill_jax import optim
from distill_jax.diffusion import network as network_lib
from distill_jax.diffusion import times
from distill_jax.diffusion.network import Condition, Network
from distill_jax.losses.denoising import expand
from distill_jax.method import Metrics, State, minimize


def start(
  config,
  key: jax.Array,
  pretrained: dict[str, Any],
  tx: optax.GradientTransformation,
  *,
  teacher: bool = True,
  **players: tuple[Any, optax.GradientTransformation],
) -> tuple[State, Any]:
  """State and frozen of a method.

  Args:
    config: models.student, models.teacher.
    key: of random weights.
    pretrained: loaded weights, see `network.params`.
    tx: the student's optimiser.
    teacher: whether there is one.
    **players: name -> (parameters, optimiser). Parameters of None are those of a copy of the
      teacher's network.
  """
  student_key, teacher_key, *keys = jax.random.split(key, 2 + len(players))
  student = network_lib.params(config, "student", student_key, pretrained)
  ema = optim.ema_init(config.ema, student)
  state = dict(step=jnp.int32(0), student=student, opt=tx.init(student), ema=ema)
  for key, (name, (params, player_tx)) in zip(keys, players.items(), strict=True):
    params = network_lib.params(config, name, key, pretrained) if params is None else params
    state |= {name: params, f"{name}_opt": player_tx.init(params)}
  if not teacher:
    return state, {}
  return state, dict(teacher=network_lib.params(config, "teacher", teacher_key, pretrained))


def move(
  config,
  tx: optax.GradientTransformation,
  loss: Callable,
  state: State,
  batch: Any,
  key: jax.Array,
  name: str = "student",
) -> tuple[State, Metrics]:
  """One update of a player on `loss(params, batch, key) -> ((sum, count), metrics)`.

  The student's metrics are loss, grad_norm and skipped, those of others have their name in front.
  The student's averages follow it.
  """
  opt = "opt" if name == "student" else f"{name}_opt"
  params, opt_state, metrics = minimize(
    tx, loss, state[name], state[opt], batch, key, microbatches=config.microbatches
  )
  state = dict(state, **{name: params, opt: opt_state})
  if name == "student":
    state["ema"] = optim.ema_update(config.ema, state["ema"], params, state["step"])
    return state, metrics
  return state, {f"{name}_{k}" if "/" not in k else k: v for k, v in metrics.items()}


def alternate(
  config, state: State, student_move: Callable, others_move: Callable
) -> tuple[State, Metrics]:
  """One step of two sides, by `config.method.ratio` and `config.method.cadence`.

  Args:
    config: cadence "every": the others move at every step and the student at each ratio-th, before
      them (1 : ratio, as DMD2); cadence "either": the student moves at each ratio-th step and the
      others at the rest (1 : ratio - 1, as FastGen).
    state: has `step`, which is counted on here.
    student_move, others_move: state -> state, metrics. A side that rests reports nothing.

  Returns:
    state, metrics.

  References:
    Yin et al., Improved Distribution Matching Distillation (arXiv:2405.14867), section 4.2.
  """
  turn = state["step"] % config.method.ratio == 0
  if config.method.cadence not in ("every", "either"):
    raise ValueError(f"method.cadence is every or either, not {config.method.cadence!r}")
  if config.method.ratio == 1:
    state, metrics = student_move(state)
    state, others = others_move(state)
    return dict(state, step=state["step"] + 1), metrics | others
  state, metrics = _if(turn, student_move, state)
  state, others = (
    others_move(state) if config.method.cadence == "every" else _if(~turn, others_move, state)
  )
  return dict(state, step=state["step"] + 1), metrics | others


def _if(turn: jax.Array, step: Callable, state: State) -> tuple[State, Metrics]:
  """The step, or the same state and metrics that count nothing."""
  shapes = jax.eval_shape(step, state)[1]

  def rest(state):
    return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  return jax.lax.cond(turn, step, rest, state)


def label_of(network: Network, batch: Any) -> Condition:
  """The batch's labels, for a network that has classes."""
  return {"label": batch["label"]} if network.num_classes else {}


def drop(network: Network, condition: Condition, key: jax.Array, rate: float) -> Condition:
  """Labels become the null label with probability `rate`, for classifier-free guidance."""
  if "label" not in condition or not rate:
    return condition
  gone = jax.random.bernoulli(key, rate, condition["label"].shape)
  return dict(condition, label=jnp.where(gone, network.num_classes, condition["label"]))


def random_labels(network: Network, key: jax.Array, n: int) -> Condition:
  """Labels drawn uniformly, for methods that need no data."""
  if not network.num_classes:
    return {}
  return {"label": jax.random.randint(key, (n,), 0, network.num_classes)}


def total(values: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(sum, count) of one number for each example, as `minimize` wants it."""
  return jnp.sum(values, dtype=jnp.float32), jnp.float32(values.size)


def noised(config, key: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """x + sigma eps and sigma [B], drawn as `config.noise` says."""
  key_sigma, key_noise = jax.random.split(key)
  sigma = times.draw(config.noise, key_sigma, len(x))
  return x + expand(sigma, x) * jax.random.normal(key_noise, x.shape, x.dtype), sigma


def mean(values: jax.Array) -> jax.Array:
  """The mean of each example's entries: [B, ...] -> [B]."""
  return jnp.mean(values, axis=range(1, values.ndim))
