"""Training on synthetic data, differentiated in it: one gradient in three memories, and TESLA's.

  w_{k+1} = w_k - a v_{k+1},  v_{k+1} = m v_k + grad loss(w_k; data)

  full   all steps kept: memory of N steps
  remat  each computed again: N copies of the parameters and one step
  sqrt   blocks of about sqrt(N), and the steps in them, computed again: 2 sqrt(N) copies
  tesla  a second pass in place of backpropagation: memory of one step; what the parameters owe to
         earlier images is left out, so this is another gradient (not for one step)

Cui, Wang, Si, Hsieh, Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory
(arXiv:2211.10586), section 3, for the last.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.losses import matching

Tree = Any
UNROLLS = ("full", "remat", "sqrt", "tesla")


def match(
  gradient: Callable[[Tree, Tree, Tree], Tree],
  data: Tree,
  lr: jax.Array,
  steps: Tree,
  start: Tree,
  targets: Sequence[Tree],
  *,
  unroll: str,
  momentum: float = 0.0,
) -> jax.Array:
  """How far training on synthetic data passes from an expert: `matching.trajectory_distance`,
  summed over the targets.

  Args:
    gradient: (params, data, step) -> the gradient of a step's loss in params.
    data: what is learned, float leaves.
    lr: scalar, learned too.
    steps: what differs from step to step, leaves [N, ...].
    start: the expert's parameters where training begins.
    targets: its parameters after equal parts of the steps, the last after all. TESLA has one.
    unroll: one of UNROLLS.
    momentum: of the updates; none in TESLA.

  Returns:
    Scalar.

  Raises:
    ValueError: no such unroll, or TESLA with momentum or several targets.
  """
  if unroll not in UNROLLS:
    raise ValueError(f"unroll {unroll!r}: {', '.join(UNROLLS)}")
  if unroll == "tesla":
    if momentum or len(targets) > 1:
      raise ValueError("unroll tesla takes neither momentum nor targets on the way.")
    total = gradient_sum(gradient)(data, jax.lax.stop_gradient(lr), start, steps)
    return matching.tesla(total, start, targets[0], lr)

  def update(carry, step):
    params, velocity = carry
    move = gradient(params, data, step)
    if momentum:
      move = velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, move)
    return (descend(params, move, lr), velocity), None

  walk = blocks if unroll == "sqrt" else lambda update, *args: jax.lax.scan(update, *args)[0]
  update = update if unroll == "full" else jax.checkpoint(update)
  carry = (start, jax.tree.map(jnp.zeros_like, start) if momentum else None)
  count = len(jax.tree.leaves(steps)[0])
  ends = [count // len(targets) * i for i in range(1, len(targets))] + [count]
  distance, begin = jnp.float32(0), 0
  for end, target in zip(ends, targets, strict=True):
    carry = walk(update, carry, jax.tree.map(lambda x, a=begin, b=end: x[a:b], steps))
    distance += matching.trajectory_distance(carry[0], start, target)
    begin = end
  return distance


def blocks(update: Callable, carry: Tree, steps: Tree) -> Tree:
  """The end of a scan over [N, ...] in blocks of about sqrt(N), each a checkpoint."""
  n = len(jax.tree.leaves(steps)[0])
  size = math.isqrt(n)
  whole = n // size * size
  block = jax.checkpoint(lambda carry, part: jax.lax.scan(update, carry, part))
  parts = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), steps)
  carry, _ = jax.lax.scan(block, carry, parts)
  if whole < n:
    carry, _ = block(carry, jax.tree.map(lambda x: x[whole:], steps))
  return carry


def gradient_sum(gradient: Callable[[Tree, Tree, Tree], Tree]) -> Callable:
  """(data, lr, start, steps) -> the sum of the steps' gradients, in constant memory.

  Its derivative in data takes the parameters of every step as constants: the steps are walked a
  second time, and each is differentiated alone.
  """

  def walk(data, lr, start, steps, add, total):
    def step(carry, step):
      params, total = carry
      g, part = add(params, step)
      return (descend(params, g, lr), jax.tree.map(jnp.add, total, part)), None

    return jax.lax.scan(step, (start, total), steps)[0][1]

  @jax.custom_vjp
  def of(data, lr, start, steps):
    zero = jax.tree.map(jnp.zeros_like, start)
    add = lambda params, step: (gradient(params, data, step),) * 2  # noqa: E731
    return walk(data, lr, start, steps, add, zero)

  def forward(*args):
    return of(*args), args

  def backward(args, cotangent):
    data, lr, start, steps = args

    def add(params, step):
      g, pull = jax.vjp(lambda data: gradient(params, data, step), data)
      return g, pull(cotangent)[0]

    zero = jax.tree.map(jnp.zeros_like, data)
    return walk(data, lr, start, steps, add, zero), None, None, None

  of.defvjp(forward, backward)
  return of


def descend(params: Tree, gradient: Tree, lr: jax.Array) -> Tree:
  return jax.tree.map(lambda w, g: w - lr * g, params, gradient)
