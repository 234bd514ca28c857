"""Products of hidden states and a head, a chunk of tokens at a time, with their gradients."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

BLOCK = 1 << 20  # logits of a block: 4 MiB
BATCH_AXES = ("data", "fsdp")  # mesh axes over which the first axis of the hidden states is spread


def scan(
  position_loss: Callable,
  student: tuple,
  rest: tuple,
  weights: jax.Array | None,
  tables: tuple[bool, bool],
  chunk: int,
) -> tuple[jax.Array, Any]:
  """The loss of every token and, if `weights` are given, the gradients of the weighted sum.

  Each part of the batch is scanned by the devices that hold it, and the head's gradients are added
  up once in the end: left to itself the compiler would do so at every chunk. A vocabulary that is
  spread over another axis stays so; its sums and maxima are what those devices exchange.

  Args:
    position_loss: (student products [..., V], teacher products [..., V'], *extras) -> [...], or
      (student products, *extras) without a teacher; or -> [..., K], as `weights` then are.
    student: hidden states [..., D] and head [D, V].
    rest: None or the teacher's hidden states and head; a tuple of extras [..., ...]; None or
      bool[...], the tokens that count.
    weights: None or [...].
    tables: whether the heads of student and teacher are [V, D] instead.
    chunk: how many tokens have products at a time, over all devices.

  Returns:
    [...] or [..., K], and None or the gradients of hidden states and head.
  """
  axes, parts = _batch_axes(student[0].shape[0])
  if parts == 1:
    values, grads = _local_scan(position_loss, student, rest, weights, tables, chunk)
    return values, grads and (grads[0], grads[1].astype(student[1].dtype))

  def local(student, rest, weights):
    size = max(1, chunk // parts)
    values, grads = _local_scan(position_loss, student, rest, weights, tables, size)
    return values, grads and (grads[0], jax.lax.psum(grads[1], axes))

  (teacher, *_), rows = rest, jax.P(axes)
  specs = ((rows, jax.P()), (teacher and (rows, jax.P()), rows, rows), rows)
  out = (rows, None if weights is None else (rows, jax.P()))
  spread = jax.shard_map(
    local, in_specs=specs, out_specs=out, axis_names=set(axes), check_vma=False
  )
  values, grads = spread(student, rest, weights)
  return values, grads and (grads[0], grads[1].astype(student[1].dtype))


def _batch_axes(size: int) -> tuple[tuple[str, ...], int]:
  """The axes of the mesh in use that spread a batch of `size`, and into how many parts."""
  mesh = jax.sharding.get_abstract_mesh()
  auto = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  axes = tuple(a for a in BATCH_AXES if auto.get(a) == jax.sharding.AxisType.Auto)
  parts = math.prod(mesh.shape[a] for a in axes)
  return (axes, parts) if size % parts == 0 else ((), 1)


def _local_scan(position_loss, student, rest, weights, tables, chunk) -> tuple[jax.Array, Any]:
  hidden, head = student
  (teacher, extras, where), dtype = rest, wide(hidden.dtype)
  matrix, table = head.astype(hidden.dtype), tables[0]
  teacher_hidden: Any
  teacher_head: Any
  teacher_hidden, teacher_head = (None, None) if teacher is None else teacher
  axis = hidden.ndim - 2
  length = hidden.shape[axis]
  steps = math.ceil(length / max(1, chunk // math.prod(hidden.shape[:axis])))
  size = math.ceil(length / steps)

  def pad(x):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, steps * size - length)
    return jnp.pad(x, widths) if steps * size > length else x

  if where is None and steps * size > length:
    where = jnp.ones(hidden.shape[:-1], bool)
  inputs = jax.tree.map(pad, (hidden, teacher_hidden, extras, where, weights))

  def step(head_grad, i):
    hidden, teacher_hidden, extras, where, weight = jax.tree.map(
      lambda x: jax.lax.dynamic_slice_in_dim(x, i * size, size, axis), inputs
    )
    if where is not None:  # whatever a masked token holds, its logits are 0 from here on
      hidden = jnp.where(where[..., None], hidden, 0)
    other: tuple[jax.Array, ...] = ()
    if teacher is not None:
      if where is not None:
        teacher_hidden = jnp.where(where[..., None], teacher_hidden, 0)
      other = (_product(teacher_hidden, teacher_head, tables[1], dtype),)

    def losses(products, other, extras, where, weight):
      def loss(products):
        values = position_loss(products, *other, *extras).astype(dtype)
        if where is None:
          return values
        return jnp.where(where.reshape(*where.shape, *[1] * (values.ndim - where.ndim)), values, 0)

      if weight is None:
        return loss(products), None
      values, pull = jax.vjp(loss, products)
      return values, pull(weight.astype(dtype))[0].astype(hidden.dtype)

    arguments = _product(hidden, matrix, table, dtype), other, extras, where, weight
    values, slope = jax.lax.platform_dependent(
      *arguments, cpu=partial(_in_blocks, losses), default=losses
    )
    if weights is None:
      return head_grad, (values, None)
    hidden_grad = _product(slope, matrix, not table, dtype).astype(hidden.dtype)
    batch = tuple(range(hidden.ndim - 1))
    pair = (slope, hidden) if table else (hidden, slope)
    head_grad += jnp.tensordot(*pair, (batch, batch), preferred_element_type=dtype)
    return head_grad, (values, hidden_grad)

  start = None if weights is None else jnp.zeros(head.shape, dtype)
  head_grad: Any
  head_grad, (values, hidden_grad) = jax.lax.scan(step, start, jnp.arange(steps))

  def join(x):
    x = jnp.moveaxis(x, 0, axis)
    x = x.reshape(*x.shape[:axis], steps * size, *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, length, axis=axis)

  if weights is None:
    return join(values), None
  return join(values), (join(hidden_grad), head_grad)  # summed over devices before it is rounded


def _in_blocks(losses: Callable, products: jax.Array, *rest: Any) -> Any:
  """`losses` on a few tokens at a time: what a CPU computes between two products stays in its
  caches, and takes no memory."""
  lead, vocabulary = products.shape[:-1], products.shape[-1]
  tokens = math.prod(lead)
  rows = next(n for n in range(max(1, BLOCK // vocabulary), 0, -1) if tokens % n == 0)
  if rows == tokens or 4 * rows * vocabulary < BLOCK:  # one block, or too many small ones
    return losses(products, *rest)
  split = lambda x: x.reshape(-1, rows, *x.shape[len(lead) :])  # noqa: E731
  joined = jax.lax.map(lambda x: losses(*x), jax.tree.map(split, (products, *rest)))
  return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[2:]), joined)


def _product(x: jax.Array, matrix: jax.Array, transposed: bool, dtype) -> jax.Array:
  """x [..., D] times a matrix [D, V], or [V, D] if `transposed` -> [..., V]."""
  dims = (((x.ndim - 1,), (int(transposed),)), ((), ()))
  return jax.lax.dot_general(x, matrix.astype(x.dtype), dims, preferred_element_type=dtype)


def wide(dtype) -> Any:
  return jnp.promote_types(dtype, jnp.float32)
