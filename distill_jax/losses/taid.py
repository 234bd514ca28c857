"""A target that moves from the student to the teacher (TAID), and a learned temperature (CTKD)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


def taid_target(
  student_logits: jax.Array, teacher_logits: jax.Array, t: float | jax.Array
) -> jax.Array:
  """Logits (1 - t) z_student + t z_teacher, without gradient, to be used as a teacher's.

  Shing, Misaki, Bao, Yokoi, Akiba, TAID: Temporally Adaptive Interpolated Distillation for
  Efficient Knowledge Transfer in Language Models (arXiv:2501.16937), eq. 2. Its loss is the forward
  KL to this target; the authors' code leaves out the target's entropy.

  Args:
    student_logits, teacher_logits: [..., V]. An id at -inf on one side is at -inf in the target.
    t: share of the teacher in [0, 1].
  """
  dtype = jnp.promote_types(jnp.result_type(student_logits, teacher_logits), jnp.float32)
  s, t_logits = (jax.lax.stop_gradient(x.astype(dtype)) for x in (student_logits, teacher_logits))
  outside = (s == -jnp.inf) | (t_logits == -jnp.inf)
  mixed = (1 - t) * jnp.where(outside, 0.0, s) + t * jnp.where(outside, 0.0, t_logits)
  return jnp.where(outside, -jnp.inf, mixed)


class Taid(NamedTuple):
  """What TAID's schedule remembers, float32 scalars: part of the training state."""

  t: jax.Array
  last_loss: jax.Array  # NaN before the first update
  momentum: jax.Array


def taid_init(*, start: float = 0.4, dtype=jnp.float32) -> Taid:
  """The schedule before the first step, at t = `start`."""
  return Taid(jnp.asarray(start, dtype), jnp.asarray(jnp.nan, dtype), jnp.asarray(0.0, dtype))


def taid_delta(
  state: Taid, loss: jax.Array, *, rate: float = 5e-4, decay: float = 0.99
) -> tuple[jax.Array, jax.Array]:
  """How far the loss moves t, and the new momentum.

  m = decay m + (1 - decay) (L' - L) / (L' + 1e-15) with L' the loss before L; the move is
  rate sigmoid(m) (1 - t). It is NaN, and m stays, when there is no loss before.
  """
  change = (state.last_loss - loss) / (state.last_loss + 1e-15)
  momentum = decay * state.momentum + (1 - decay) * change
  momentum = jnp.where(jnp.isnan(state.last_loss), state.momentum, momentum)
  return rate * jax.nn.sigmoid(momentum) * (1 - state.t) + 0 * state.last_loss, momentum


def taid_update(
  state: Taid,
  loss: jax.Array,
  progress: float | jax.Array,
  *,
  start: float = 0.4,
  end: float = 1.0,
  rate: float = 5e-4,
  decay: float = 0.99,
  adaptive: bool = True,
) -> Taid:
  """Moves t by how fast the loss falls, at least along the straight line from `start` to `end`.

  t = min(end, max(start + (end - start) progress, t + move)), the move from `taid_delta`.

  TAID (arXiv:2501.16937), algorithm 1. As in the authors' code the first call stores the loss and
  leaves t alone. Call it after the loss of the step was taken with the old t.

  Args:
    loss: the scalar loss of this step; it gets no gradient.
    progress: step / number of steps.
    rate, decay: alpha and beta of the paper.
    adaptive: False keeps to the straight line.
  """
  loss = jax.lax.stop_gradient(loss).astype(state.t.dtype)
  delta, momentum = taid_delta(state, loss, rate=rate, decay=decay)
  line = start + (end - start) * progress
  t = jnp.minimum(jnp.maximum(line, state.t + delta) if adaptive else line, end)
  t = jnp.where(jnp.isnan(state.last_loss), state.t, t).astype(state.t.dtype)
  return Taid(t, loss, momentum)


def learned_temperature(
  parameter: jax.Array, strength: float | jax.Array, *, low: float = 1.0, span: float = 20.0
) -> jax.Array:
  """low + span sigmoid(parameter), whose gradient is multiplied by -strength: the temperature
  climbs where the student descends.

  Li et al., Curriculum Temperature for Knowledge Distillation (arXiv:2211.16231), eq. 4 to 7. Its
  loss is T^2 times the cross-entropy at this temperature. TAID's code of this baseline multiplies
  the gradient by +strength, which reverses nothing.
  """
  return low + span * jax.nn.sigmoid(_scale_gradient(parameter, -strength))


def cosine_strength(progress: float | jax.Array) -> jax.Array:
  """(1 + cos(pi progress)) / 2, from 1 at progress 0 to 0 at 1 and after."""
  return (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0))) / 2


def _scale_gradient(x: jax.Array, factor: float | jax.Array) -> jax.Array:
  fixed = jax.lax.stop_gradient(x)
  return fixed + factor * (x - fixed)
