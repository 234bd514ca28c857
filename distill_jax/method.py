"""A method is two pure functions. `make(config)` of a file under `methods/` returns them.

  state, frozen  = method.init(key, pretrained)
  state, metrics = method.step(state, frozen, batch, key)      # one compiled program

`state` is a plain dict of arrays that holds everything the next step needs, `step` among it;
`frozen` is what is only read. Keys are folded in from the step number by the caller. Metrics are
(sum, count) pairs; what was not measured is absent.
"""

import importlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from distill_jax.config import ConfigError, did_you_mean

Tree = Any  # a pytree of arrays
State = dict[str, Any]
Metrics = dict[str, tuple[jax.Array, jax.Array]]


class Method(NamedTuple):
  """A distillation method, after optax.GradientTransformation."""

  init: Callable[
    [jax.Array, dict[str, Tree]], tuple[State, Tree]
  ]  # (key, pretrained) -> state, frozen
  step: Callable[
    [State, Tree, Tree, jax.Array], tuple[State, Metrics]
  ]  # (state, frozen, batch, key)
  prepare: Callable | None = None  # outside jit: batches that need Python code, such as a verifier


def over_seeds(method: Method, seeds: int) -> Method:
  """The method run `seeds` times at once, on the same batches, from different keys.

  Every array of the state but `step` gets a first axis of seeds; frozen, which may not depend on
  the key, is shared. Metrics add up over the seeds. For networks so small that one at a time leaves
  the machine idle.
  """
  if method.prepare is not None:
    raise ConfigError("seeds: a method with work outside the step runs one seed at a time.")

  def axes(state):
    return {name: None if name == "step" else 0 for name in state}

  def init(key, pretrained):
    state, _ = jax.eval_shape(method.init, key, pretrained)
    keys = jax.random.split(key, seeds)
    return jax.vmap(method.init, in_axes=(0, None), out_axes=(axes(state), None))(keys, pretrained)

  def step(state, frozen, batch, key):
    of_state = axes(state)
    state, metrics = jax.vmap(
      method.step, in_axes=(of_state, None, None, 0), out_axes=(of_state, 0)
    )(state, frozen, batch, jax.random.split(key, seeds))
    return state, jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)

  return Method(init, step)


def load(kind: str, name: str) -> Any:
  """The module `distill_jax.<kind>.<name>`, for example ("methods", "llm.kd"). No registry: the
  file is the entry."""
  root = pathlib.Path(__file__).parent / kind
  names = [".".join(p.relative_to(root).with_suffix("").parts) for p in root.rglob("*.py")]
  names = [n for n in names if not n.endswith("__init__")]
  if name not in names:
    raise ConfigError(
      f"No {kind[:-1] if kind != 'data' else kind} {name!r}." + did_you_mean(name, names)
    )
  return importlib.import_module(f"distill_jax.{kind}.{name}")


def minimize(
  tx: optax.GradientTransformation,
  loss_fn: Callable,
  params: Tree,
  opt: Tree,
  batch: Tree,
  key: jax.Array,
  *,
  microbatches: int = 1,
) -> tuple[Tree, Tree, Metrics]:
  """One optimiser update of `params` on the mean of a loss.

  The mean is taken over the whole batch: sums and counts of the microbatches are added up before
  they are divided, so that accumulation does not change the answer when masks differ. An update
  whose loss or gradient is not finite is
  skipped: `params` and `opt` return unchanged and `skipped` counts it.

  Args:
    tx: the optimiser.
    loss_fn: (params, batch, key) -> ((sum, count), metrics), the loss summed over what it counts
      (tokens, images).
    params: the tree that is optimised.
    opt: its optimiser state.
    batch: arrays with a common first axis, divisible by `microbatches`.
    key: randomness; each microbatch gets its own.
    microbatches: how many parts of the batch run one after the other.

  Returns:
    params, opt, and metrics: those of `loss_fn` with `loss`, `grad_norm` (before clipping) and
      `skipped`.
  """

  def sums(batch, key):
    def objective(params):
      (total, count), metrics = loss_fn(params, batch, key)
      return total, dict(metrics, loss=(total, count))

    return jax.grad(objective, has_aux=True)(params)

  if microbatches == 1:
    grads, metrics = sums(batch, key)
  else:
    parts = jax.tree.map(lambda x: _split(x, microbatches), batch)
    keys = jax.random.split(key, microbatches)
    first = jax.tree.map(lambda x: x[0], (parts, keys))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(sums, *first))

    def add(total, part):
      return jax.tree.map(jnp.add, total, sums(*part)), None

    (grads, metrics), _ = jax.lax.scan(add, zeros, (parts, keys))

  total, count = metrics["loss"]
  grads = jax.tree.map(lambda g: g / jnp.maximum(count, 1).astype(g.dtype), grads)
  norm = optax.tree.norm(grads)
  finite = jnp.isfinite(total) & jnp.isfinite(norm)

  updates, new_opt = tx.update(grads, opt, params)
  new = (optax.apply_updates(params, updates), new_opt)
  params, opt = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, (params, opt))
  metrics = dict(metrics, grad_norm=(norm, jnp.float32(1)), skipped=(1.0 - finite, jnp.float32(1)))
  return params, opt, metrics


def _split(x: jax.Array, parts: int) -> jax.Array:
  """[B, ...] -> [parts, B/parts, ...], each part spread over all of B so that it stays spread over
  the devices."""
  if x.shape[0] % parts:
    raise ConfigError(f"A batch of {x.shape[0]} does not split into {parts} microbatches.")
  return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
