"""What language-model methods share: a student with its optimiser and averages as state, a teacher
as frozen, and the divergence between the two on a batch.

A batch has tokens int[B, T + 1] and mask bool[B, T], the targets that count. Packed rows have
segments int[B, T + 1] too, a number for each document of a row: attention stays within a segment,
positions count from its start.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from distill_jax import optim
from distill_jax.config import ConfigError
from distill_jax.data import tokenizer
from distill_jax.losses.linear_divergence import (
  Head,
  linear_cross_entropy_sum,
  linear_divergence_sum,
)
from distill_jax.method import Metrics, State, minimize
from distill_jax.models import pretrained as pretrained_lib
from distill_jax.models import transformer


def model(config, name: str) -> transformer.Model:
  """The transformer called `name` ("student", "teacher") in the config, as functions."""
  vocabulary = tokenizer.load(config.data.tokenizer).vocab_size
  return transformer.make(pretrained_lib.architecture(config, name), vocabulary)


def head(model: transformer.Model) -> Head:
  """What the chunked losses must know of a model's head."""
  return Head(softcap=model.logit_softcap or None, vocabulary=model.vocabulary)


def hidden(model: transformer.Model, params: Any, batch: Any) -> jax.Array:
  """The last hidden states [B, T, D] at the inputs of a batch, which predict its targets."""
  inputs = batch["tokens"][:, :-1]
  if "segments" not in batch:
    return model.hidden(params, inputs)
  segments = batch["segments"][:, :-1]
  order = jnp.arange(segments.shape[1])
  begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
  start = jax.lax.cummax(jnp.where(begins, order, 0), axis=1)
  return model.hidden(params, inputs, positions=order - start, segment_ids=segments)


def divergence_sum(
  config,
  divergence: Callable,
  student: tuple[transformer.Model, Any],
  teacher: tuple[transformer.Model, Any],
  batch: Any,
  *extras: jax.Array,
  weights: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """`linear_divergence_sum` between two models, each with its parameters, on the targets of a
  batch; `weights` [B, T] are the batch's mask unless given."""
  return linear_divergence_sum(
    divergence,
    hidden(*student, batch),
    student[0].head(student[1]),
    jax.lax.stop_gradient(hidden(*teacher, batch)),
    teacher[0].head(teacher[1]),
    *extras,
    weights=batch["mask"] if weights is None else weights,
    chunk=config.divergence.chunk,
    student=head(student[0]),
    teacher=head(teacher[0]),
  )


def cross_entropy_sum(
  config, model: transformer.Model, params: Any, batch: Any, weights: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """`linear_cross_entropy_sum` on the targets of a batch."""
  return linear_cross_entropy_sum(
    hidden(model, params, batch),
    model.head(params),
    batch["tokens"][:, 1:],
    weights=batch["mask"] if weights is None else weights,
    chunk=config.divergence.chunk,
    student=head(model),
  )


def params(config, name: str, key: jax.Array, pretrained: dict[str, Any]) -> Any:
  """A model's parameters: those loaded, in the dtype that the config asks for, or random ones."""
  if name not in pretrained:
    return model(config, name).init(key)
  dtype = config.models[name].param_dtype
  return jax.tree.map(lambda x: jnp.asarray(x, dtype), pretrained[name])


def init(config, tx: optax.GradientTransformation, *, teacher: bool = True) -> Callable:
  """(key, pretrained) -> state {step, student, opt, ema}, frozen {teacher}.

  With `teacher=False` a teacher is there only if the config names its folder: for evals.
  """
  _check_vocabulary(config)

  def init(key, pretrained):
    student_key, teacher_key = jax.random.split(key)
    student = params(config, "student", student_key, pretrained)
    averages = optim.ema_init(config.ema, student)
    state = dict(step=jnp.int32(0), student=student, opt=tx.init(student), ema=averages)
    if not teacher and "teacher" not in pretrained:
      return state, {}
    return state, dict(teacher=params(config, "teacher", teacher_key, pretrained))

  return init


def update(
  config, tx: optax.GradientTransformation, loss: Callable, state: State, batch: Any, key: jax.Array
) -> tuple[State, Metrics]:
  """One step of the student on `loss` (see `method.minimize`), its averages and the step number."""
  student, opt, metrics = minimize(
    tx, loss, state["student"], state["opt"], batch, key, microbatches=config.microbatches
  )
  averages = optim.ema_update(config.ema, state["ema"], student, state["step"])
  new = dict(step=state["step"] + 1, student=student, opt=opt, ema=averages)
  return dict(state, **new), metrics


def _check_vocabulary(config) -> None:
  """Refuses token ids that a model has no row for, or that mean something else to it."""
  tokens = tokenizer.load(config.data.tokenizer)
  for name, path in config.pretrained.items():
    size = pretrained_lib.architecture(config, name).vocab_size
    if tokens.vocab_size > size:
      raise ConfigError(
        f"data.tokenizer has {tokens.vocab_size} tokens, the {name} a vocabulary of {size}: set "
        f"models.{name}.vocab_size, or use the {name}'s own tokenizer."
      )
    own = pretrained_lib.folder(path) / "tokenizer.json" if path else None
    if own and own.exists() and tokenizer.load(str(own)).fingerprint != tokens.fingerprint:
      raise ConfigError(
        f"data.tokenizer {config.data.tokenizer!r} is not the tokenizer of the {name}, {own}: "
        "token ids would mean other text to it."
      )
