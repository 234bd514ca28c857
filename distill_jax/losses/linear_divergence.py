"""Divergences from hidden states and heads, without ever holding the logits of all tokens.

Logits exist for one chunk of tokens at a time, forward and backward. Two entry points share a scan:

  - `linear_divergence` returns one number per token; its backward pass forms the logits again.
  - `linear_divergence_sum` returns their weighted sum and forms the gradients in the forward pass,
    while the logits are there, so that nothing is computed twice. Training wants this one.

Matrix products run in the dtype of the hidden states with float32 sums; the rest is float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.losses.chunks import scan, wide
from distill_jax.losses.log_probs import token_log_probs


class Head(NamedTuple):
  """Products h W to logits: softcap * tanh(scale * h W / softcap), ids >= vocabulary at -inf."""

  scale: float = 1.0
  softcap: float | None = None
  vocabulary: int | None = None
  table: bool = False  # W is given as [V, D], as embeddings lie: where it is tied to them no copy


def linear_divergence(
  divergence: Callable[..., jax.Array],
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array,
  *extras: jax.Array,
  where: jax.Array | None = None,
  chunk: int = 1024,
  student: Head = Head(),  # noqa: B008 (immutable)
  teacher: Head = Head(),  # noqa: B008
) -> jax.Array:
  """The divergence of each token between two models given by their last hidden states and heads.

  Reverse-differentiable in `student_hidden` and `student_head`; nothing else gets a gradient. With
  [B, T, D] hidden states the chunks are slices of T, so that a B that is spread over devices stays
  evenly spread in each chunk.

  Args:
    divergence: (student_logits [..., V], teacher_logits [..., V], *extras) -> [...], any function
      that treats positions alone, such as those of `divergences.py` with their hyperparameters
      bound by functools.partial. It may close over arrays, as TAID does over t. One that returns
      [..., K], several numbers of the same logits, is as good.
    student_hidden, teacher_hidden: [..., D] and [..., E] with the same leading axes, at least one.
    student_head, teacher_head: [D, V] and [E, V'], or transposed (see `Head.table`). The narrower
      vocabulary is padded with impossible ids.
    extras: arrays with the leading axes of the hidden states, such as targets.
    where: bool[...], the tokens that count; the others return 0 and pass no gradient.
    chunk: how many tokens, over all devices, have logits at a time; at least one slice of T.
    student, teacher: scale, soft cap and vocabulary of each head.

  Returns:
    [...] or [..., K], float32 (float64 for float64 hidden states).

  Raises:
    ValueError: the shapes do not fit.
  """
  position_loss = _position_loss(divergence, student, teacher)
  tables = student.table, teacher.table
  rest = _rest(student_hidden, student_head, (teacher_hidden, teacher_head), extras, where, tables)
  return _per_token(position_loss, tables, chunk)((student_hidden, student_head), rest)


def linear_divergence_sum(
  divergence: Callable[..., jax.Array],
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array,
  *extras: jax.Array,
  weights: jax.Array | None = None,
  chunk: int = 1024,
  student: Head = Head(),  # noqa: B008
  teacher: Head = Head(),  # noqa: B008
) -> tuple[jax.Array, jax.Array]:
  """sum over tokens of weight times divergence, with the gradients formed in the forward pass.

  As `linear_divergence`, but no logit is computed twice: 5 instead of 8 matrix products of the
  student's size if both models have one width. Only the sum carries a gradient.

  Args:
    weights: [...], bool or float; tokens of weight 0 are left out. None weighs every token by 1.

  Returns:
    The sum, a scalar, and the divergence of each token [...] before weighting (0 where left out),
    for metrics.
  """
  position_loss = _position_loss(divergence, student, teacher)
  where = None if weights is None else weights != 0
  tables = student.table, teacher.table
  rest = _rest(student_hidden, student_head, (teacher_hidden, teacher_head), extras, where, tables)
  return _weighted_sum(position_loss, tables, chunk)((student_hidden, student_head), rest, weights)


def linear_cross_entropy(
  hidden: jax.Array,
  head: jax.Array,
  targets: jax.Array,
  *,
  where: jax.Array | None = None,
  chunk: int = 1024,
  student: Head = Head(),  # noqa: B008
) -> jax.Array:
  """-log softmax(logits)[target] of each token, chunked as `linear_divergence` is.

  Args:
    hidden: [..., D].
    head: [D, V].
    targets: int[...]; anything at tokens that do not count.
    where, chunk, student: as in `linear_divergence`.

  Returns:
    [...], float32 (float64 for float64 hidden states).
  """
  return linear_loss(
    lambda logits, ids: -token_log_probs(logits, ids),
    hidden,
    head,
    targets,
    where=where,
    chunk=chunk,
    student=student,
  )


def linear_loss(
  position_loss: Callable[..., jax.Array],
  hidden: jax.Array,
  head: jax.Array,
  *extras: jax.Array,
  where: jax.Array | None = None,
  chunk: int = 1024,
  student: Head = Head(),  # noqa: B008
) -> jax.Array:
  """A loss of one model's logits at each token, chunked as `linear_divergence` is.

  Args:
    position_loss: (logits [..., V], *extras) -> [...] or [..., K], a function that treats positions
      alone.
    hidden, head: [..., D] and [D, V].
    extras: arrays [..., ...] with the leading axes of the hidden states.
    where, chunk, student: as in `linear_divergence`.

  Returns:
    [...] or [..., K], float32 (float64 for float64 hidden states).
  """
  tables = student.table, False
  rest = _rest(hidden, head, None, extras, where, tables)
  return _per_token(_position_loss(position_loss, student), tables, chunk)((hidden, head), rest)


def linear_cross_entropy_sum(
  hidden: jax.Array,
  head: jax.Array,
  targets: jax.Array,
  *,
  weights: jax.Array | None = None,
  chunk: int = 1024,
  student: Head = Head(),  # noqa: B008
) -> tuple[jax.Array, jax.Array]:
  """sum over tokens of weight times -log softmax(logits)[target], gradients formed in the forward
  pass.

  As `linear_cross_entropy` and `linear_divergence_sum`: returns the sum, which alone carries a
  gradient, and the loss of each token.
  """
  return linear_loss_sum(
    lambda logits, ids: -token_log_probs(logits, ids),
    hidden,
    head,
    targets,
    weights=weights,
    chunk=chunk,
    student=student,
  )


def linear_loss_sum(
  position_loss: Callable[..., jax.Array],
  hidden: jax.Array,
  head: jax.Array,
  *extras: jax.Array,
  weights: jax.Array | None = None,
  chunk: int = 1024,
  student: Head = Head(),  # noqa: B008
) -> tuple[jax.Array, jax.Array]:
  """sum over tokens of weight times a loss of one model's logits, as `linear_divergence_sum`.

  Args:
    position_loss: (logits [..., V], *extras) -> [...], a function that treats positions alone.
    hidden, head: [..., D] and [D, V].
    extras: arrays [..., ...] with the leading axes of the hidden states, such as targets, or the
      ids and log-probabilities of a teacher that ran before.
    weights, chunk, student: as in `linear_divergence_sum`.

  Returns:
    The sum, which alone carries a gradient, and the loss of each token [...].
  """
  where = None if weights is None else weights != 0
  tables = student.table, False
  rest = _rest(hidden, head, None, extras, where, tables)
  of_position = _position_loss(position_loss, student)
  return _weighted_sum(of_position, tables, chunk)((hidden, head), rest, weights)


def _per_token(position_loss: Callable, tables: tuple[bool, bool], chunk: int) -> Callable:
  """(student, rest) -> [...]; its backward pass is the scan with the cotangent as weights."""

  @jax.custom_vjp
  def per_token(student, rest):
    return scan(position_loss, student, rest, None, tables, chunk)[0]

  def forward(student, rest):
    return per_token(student, rest), (student, rest)

  def backward(saved, cotangent):
    student, rest = saved
    return scan(position_loss, student, rest, cotangent, tables, chunk)[1], None

  per_token.defvjp(forward, backward)
  return per_token


def _weighted_sum(position_loss: Callable, tables: tuple[bool, bool], chunk: int) -> Callable:
  """(student, rest, weights) -> (sum, [...]), whose forward pass forms the gradients of the sum."""

  def total(values, weights):
    return jnp.sum(values if weights is None else values * weights)

  @jax.custom_vjp
  def weighted_sum(student, rest, weights):
    values, _ = scan(position_loss, student, rest, None, tables, chunk)
    return total(values, weights), values

  def forward(student, rest, weights):
    dtype = wide(student[0].dtype)
    ones = jnp.ones(student[0].shape[:-1], dtype)
    values, grads = scan(
      position_loss, student, rest, ones if weights is None else ones * weights, tables, chunk
    )
    return (total(values, weights), values), grads

  def backward(grads, cotangents):
    scale, _ = cotangents
    return jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads), None, None

  weighted_sum.defvjp(forward, backward)
  return weighted_sum


def _position_loss(divergence: Callable, *heads: Head) -> Callable:
  """(products of each model [..., V], *extras) -> [...], with the heads' scales, caps and masks."""

  def loss(*args):
    products, extras = args[: len(heads)], args[len(heads) :]
    width = max(x.shape[-1] for x in products)
    logits = []
    for x, head in zip(products, heads, strict=True):
      x = x * head.scale if head.scale != 1 else x
      x = head.softcap * jnp.tanh(x / head.softcap) if head.softcap is not None else x
      if head.vocabulary is not None and head.vocabulary < x.shape[-1]:
        x = jnp.where(jnp.arange(x.shape[-1]) < head.vocabulary, x, -jnp.inf)
      padding = [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])]
      logits.append(jnp.pad(x, padding, constant_values=-jnp.inf) if x.shape[-1] < width else x)
    return divergence(*logits, *extras)

  return loss


def _rest(hidden, head, teacher, extras, where, tables):
  """What gets no gradient, checked against the student's shapes."""
  lead = hidden.shape[:-1]
  if hidden.ndim < 2 or head.ndim != 2 or head.shape[tables[0]] != hidden.shape[-1]:
    raise ValueError(f"hidden states {hidden.shape} do not fit a head {head.shape}")
  if teacher is not None and (
    teacher[0].shape[:-1] != lead or teacher[0].shape[-1] != teacher[1].shape[tables[1]]
  ):
    raise ValueError(
      f"teacher hidden states {teacher[0].shape} fit neither its head {teacher[1].shape} nor the "
      f"student's {hidden.shape}"
    )
  for x in (*extras, *(() if where is None else (where,))):
    if x.shape[: len(lead)] != lead:
      raise ValueError(f"an array of shape {x.shape} has not one entry for each of {lead} tokens")
  return teacher, extras, None if where is None else where.astype(bool)
