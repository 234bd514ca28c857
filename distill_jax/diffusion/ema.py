"""Averages of parameters whose length follows the run: half-life with ramp-up, and EDM2's power
function, whose length can be chosen afterwards from two stored averages.

`distill_jax.optim` keeps the averages of a training run that need no ramp-up. Times are in any one
unit (updates, or images seen). Karras et al., Analyzing and Improving the Training Dynamics of
Diffusion Models (arXiv:2312.02696), section 3 and appendix C.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def ema_step(average: Any, params: Any, weight: jax.Array | float) -> Any:
  """average + weight (params - average), for every leaf, in the average's dtype."""

  def leaf(old, new):
    return old + jnp.asarray(weight, old.dtype) * (new.astype(old.dtype) - old)

  return jax.tree.map(leaf, average, params)


def power_weight(
  time: jax.Array | float, exponent: jax.Array | float, *, interval: jax.Array | float = 1
) -> jax.Array:
  """Weight of the new parameters, 1 - decay, decay = (1 - interval / time)^(exponent + 1).

  The average then weighs the parameters of time t by t^exponent. Like `half_life_weight` it is not
  computed as a difference, which would round away when the decay is close to 1.

  Args:
    time: of this update, the first being `interval`, where the weight is 1.
    exponent: gamma, see `std_to_exponent`.
    interval: since the last update.

  References:
    Karras et al. (arXiv:2312.02696).
  """
  return -jnp.expm1((exponent + 1) * jnp.log1p(-interval / jnp.asarray(time)))


def half_life_weight(
  time: jax.Array | float,
  half_life: jax.Array | float,
  *,
  interval: jax.Array | float = 1,
  ramp_up: float | None = None,
) -> jax.Array:
  """Weight of the new parameters, 1 - decay, decay = 2^(-interval / min(half_life, ramp_up time)).

  Args:
    time: of this update, counted with it.
    half_life: in the unit of time.
    interval: since the last update: 1, or the batch size where time counts images.
    ramp_up: the half-life is at most this share of the time so far; None: it is constant.

  References:
    Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models
    (arXiv:2206.00364), the authors' code, whose least half-life is 1e-8.
  """
  if ramp_up is not None:
    half_life = jnp.minimum(half_life, jnp.asarray(time) * ramp_up)
  return -jnp.expm1(-jnp.log(2.0) * interval / jnp.maximum(half_life, 1e-8))


def exponent_to_std(exponent: np.ndarray | float) -> np.ndarray:
  """Standard deviation of the profile t^gamma on [0, 1]: its length as a share of the run.

  sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))).
  """
  g = np.asarray(exponent, np.float64)
  return np.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3)))


def std_to_exponent(std: np.ndarray | float) -> np.ndarray:
  """The inverse of `exponent_to_std`: the largest real root of

  gamma^3 + 7 gamma^2 + (16 - std^-2) gamma + (12 - std^-2) = 0.

  Args:
    std: below 0.29, that of an even average (gamma = 0) being sqrt(1 / 12); any shape.
  """
  inverse = np.asarray(std, np.float64) ** -2.0
  roots = [np.roots([1, 7, 16 - s, 12 - s]).real.max() for s in inverse.reshape(-1)]
  return np.reshape(roots, inverse.shape)


def power_response(end: float, std: float, length: int) -> np.ndarray:
  """The weights of the parameters of times 0, 1, ..., length - 1 in the average that ends at `end`.

  (t / end)^gamma up to t = end and 0 after it, made to sum to 1: [length].
  """
  t, exponent = np.arange(length, dtype=np.float64), std_to_exponent(std)
  response = np.where(t <= end, (t / end) ** exponent, 0)
  return response / np.sum(response)


def posthoc_coefficients(
  stored_ends: np.ndarray, stored_stds: np.ndarray, ends: np.ndarray, stds: np.ndarray
) -> np.ndarray:
  """Weights of stored power-function averages whose sum is closest to averages of other lengths.

  Least squares between profiles, X = A^-1 B with A and B the inner products of the stored profiles
  with each other and with the wanted ones; columns then made to sum to 1. In float64, as A is close
  to singular.

  Args:
    stored_ends, stored_stds: [N], the time at which each average was stored, and its length.
    ends, stds: [M], of the averages wanted.

  Returns:
    [N, M]: average m is sum_n coefficients[n, m] stored_n.

  References:
    Karras et al. (arXiv:2312.02696), section 3.2 and appendix C.
  """
  stored = np.asarray(stored_ends, np.float64)[:, None], std_to_exponent(stored_stds)[:, None]
  wanted = np.asarray(ends, np.float64), std_to_exponent(stds)
  gram = _profile_product(*stored, stored[0].T, stored[1].T)
  coefficients = np.linalg.solve(gram, _profile_product(*stored, *wanted))
  return coefficients / np.sum(coefficients, axis=0)


def posthoc_average(stored: list[Any], coefficients: np.ndarray) -> Any:
  """sum_n coefficients[n] stored[n], leaf by leaf: one column of `posthoc_coefficients`."""

  def total(*leaves):
    return sum(c * leaf for c, leaf in zip(coefficients.tolist(), leaves, strict=True))

  return jax.tree.map(total, *stored)


def edm2_learning_rate(
  images: jax.Array | float,
  batch_size: int,
  *,
  reference: float = 0.01,
  decay_batches: float = 70_000,
  ramp_up: float = 10e6,
) -> jax.Array:
  """reference min(images / ramp_up, 1) / sqrt(max(images / (decay_batches batch_size), 1)).

  Args:
    images: seen so far; may be traced.
    batch_size: images of a batch.
    reference: the highest rate.
    decay_batches: batches before the rate falls; 0: it does not.
    ramp_up: images of the linear warm-up; 0: none.

  References:
    Karras et al. (arXiv:2312.02696), section 3 and the authors' code.
  """
  rate = jnp.asarray(reference)
  if decay_batches:
    rate = rate / jnp.sqrt(jnp.maximum(images / (decay_batches * batch_size), 1))
  if ramp_up:
    rate = rate * jnp.minimum(images / ramp_up, 1)
  return rate


def _profile_product(end_a, exponent_a, end_b, exponent_b):
  """<p_a, p_b> of two power-function profiles that end at their own times."""
  power = np.where(end_a < end_b, exponent_b, -exponent_a)
  top = (exponent_a + 1) * (exponent_b + 1) * (end_a / end_b) ** power
  return top / ((exponent_a + exponent_b + 1) * np.maximum(end_a, end_b))
