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
from distill_jax.models import lora, transformer
from distill_jax.models import pretrained as pretrained_lib
from distill_jax.sampling import sample


def model(config, name: str) -> transformer.Model:
  """The transformer called `name` ("student", "teacher") in the config, as functions."""
  vocabulary = tokenizer.load(tokenizer_of(config, name)).vocab_size
  return transformer.make(pretrained_lib.architecture(config, name), vocabulary)


def tokenizer_of(config, name: str) -> str:
  """The tokenizer whose ids the model `name` reads: a teacher may have its own."""
  return (name == "teacher" and config.data.teacher_tokenizer) or config.data.tokenizer


def head(model: transformer.Model) -> Head:
  """What the chunked losses must know of a model's head."""
  return Head(softcap=model.logit_softcap or None, vocabulary=model.vocabulary, table=model.tied)


def hidden(model: transformer.Model, params: Any, batch: Any, *, features: bool = False) -> Any:
  """The last hidden states [B, T, D] at the inputs of a batch, which predict its targets; with
  `features` those of all layers too, see `transformer.make`."""
  inputs = batch["tokens"][:, :-1]
  if "segments" not in batch:
    return model.hidden(params, inputs, features=features)
  segments = batch["segments"][:, :-1]
  order = jnp.arange(segments.shape[1])
  begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
  positions = order - jax.lax.cummax(jnp.where(begins, order, 0), axis=1)
  return model.hidden(params, inputs, positions=positions, segment_ids=segments, features=features)


def given(config, batch: Any) -> Any:
  """The batch with only the targets behind the first `method.prompt` tokens of each row."""
  _refuse_packed(batch)
  behind = jnp.arange(batch["mask"].shape[1]) >= config.method.prompt - 1
  return dict(tokens=batch["tokens"], mask=batch["mask"] & behind)


def write(config, model: transformer.Model, params: Any, batch: Any, key: jax.Array) -> Any:
  """The batch with each row continued by the model from its first `method.prompt` tokens on; the
  mask counts what it wrote. No gradient flows through the text."""
  _refuse_packed(batch)
  tokens, prompt = batch["tokens"], config.method.prompt
  new, temperature = tokens.shape[1] - prompt, config.method.temperature
  written = sample(model, params, tokens[:, :prompt], key, new_tokens=new, temperature=temperature)
  return dict(tokens=written.tokens, mask=written.generated[:, 1:])


def _refuse_packed(batch: Any) -> None:
  if "segments" in batch:
    raise ConfigError("Packed rows have no one prompt to continue: set data.name to text.")


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
  given = config.models[name]
  loaded = jax.tree.map(lambda x: jnp.asarray(x, given.param_dtype), pretrained[name])
  if given.lora_rank:
    return lora.with_factors(loaded, model(config, name).init(key))
  return dict(loaded, layers=lora.int8(loaded["layers"])) if given.weights == "int8" else loaded


def init(
  config,
  tx: optax.GradientTransformation,
  *,
  teacher: bool = True,
  others: tuple[str, ...] = (),
) -> Callable:
  """(key, pretrained) -> state {step, student, opt, ema}, frozen {teacher, and the others named}.

  With `teacher=False` a teacher is there only if the config names its folder: for evals.
  """
  _check_vocabulary(config)
  if config.models.student.weights != "float":
    raise ConfigError("models.student.weights: a student learns, so its weights are 'float'.")
  tx = lora.of_factors(config, tx)

  def init(key, pretrained):
    student_key, teacher_key = jax.random.split(key)
    student = params(config, "student", student_key, pretrained)
    averages = optim.ema_init(config.ema, student)
    state = dict(step=jnp.int32(0), student=student, opt=tx.init(student), ema=averages)
    if not teacher and "teacher" not in pretrained:
      return state, {}
    frozen = dict(teacher=params(config, "teacher", teacher_key, pretrained))
    for i, name in enumerate(others):
      frozen[name] = params(config, name, jax.random.fold_in(teacher_key, i), pretrained)
    return state, frozen

  return init


def update(
  config, tx: optax.GradientTransformation, loss: Callable, state: State, batch: Any, key: jax.Array
) -> tuple[State, Metrics]:
  """One step of the student on `loss` (see `method.minimize`), its averages and the step number."""
  student, opt, metrics = minimize(
    lora.of_factors(config, tx),
    loss,
    state["student"],
    state["opt"],
    batch,
    key,
    microbatches=config.microbatches,
  )
  averages = optim.ema_update(config.ema, state["ema"], student, state["step"])
  new = dict(step=state["step"] + 1, student=student, opt=opt, ema=averages)
  return dict(state, **new), metrics


def _check_vocabulary(config) -> None:
  """Refuses token ids that a model has no row for, or that mean something else to it, and says
  which of a model's ids are padding."""
  if config.data.teacher_tokenizer and config.data.name != "two_tokenizers":
    raise ConfigError(f"data.name {config.data.name!r} has no data.teacher_tokenizer: leave it ''.")
  for name, path in config.pretrained.items():
    used = tokenizer_of(config, name)
    key = "data.tokenizer" if used == config.data.tokenizer else "data.teacher_tokenizer"
    tokens = tokenizer.load(used)
    size = pretrained_lib.architecture(config, name).vocab_size
    if size > tokens.vocab_size and jax.process_index() == 0:
      padding = f"ids {tokens.vocab_size} to {size - 1} of its vocabulary are padding"
      print(f"{name}: {padding}, -inf wherever its logits are used")
    own = tokenizer.file(str(pretrained_lib.folder(path))) if path else None
    if own and tokenizer.load(str(own)).fingerprint == tokens.fingerprint:
      continue  # which may know ids of other modalities that the model has no row for
    if tokens.vocab_size > size:
      raise ConfigError(
        f"{key} has {tokens.vocab_size} tokens, the {name} a vocabulary of {size}: set "
        f"models.{name}.vocab_size, or use the {name}'s own tokenizer."
      )
    if own:
      raise ConfigError(
        f"{key} {used!r} is not the tokenizer of the {name}, {own}: "
        "token ids would mean other text to it."
      )
