"""Discrete consistency models: distances, boundary conditions, steps of the teacher, losses.

x_t = x0 + sigma eps, f(x, sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x, sigma). The loss
compares f at two neighbouring noise levels of one trajectory. A distance takes two arrays [B, ...]
and gives [B]; any function of that kind will do (LPIPS, say).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from distill_jax.losses.denoising import expand

Distance = Callable[[jax.Array, jax.Array], jax.Array]


def rows(x: jax.Array) -> jax.Array:
  """All axes but the first made one: [B, ...] -> [B, D]."""
  return x.reshape(x.shape[0], -1)


def mean_squared(x: jax.Array, y: jax.Array) -> jax.Array:
  """Mean of (x - y)^2 over all axes but the first: [B, ...] -> [B]."""
  return jnp.mean(jnp.square(rows(x - y)), axis=-1)


def mean_absolute(x: jax.Array, y: jax.Array) -> jax.Array:
  """Mean of |x - y| over all axes but the first: [B, ...] -> [B]."""
  return jnp.mean(jnp.abs(rows(x - y)), axis=-1)


def largest(x: jax.Array, y: jax.Array) -> jax.Array:
  """Largest |x - y| of each example: [B, ...] -> [B]."""
  return jnp.max(jnp.abs(rows(x - y)), axis=-1)


def euclidean(x: jax.Array, y: jax.Array) -> jax.Array:
  """||x - y||_2 of each example, with gradient 0 where x = y: [B, ...] -> [B]."""
  return _root(jnp.sum(jnp.square(rows(x - y)), axis=-1))


def root_mean_square(x: jax.Array, y: jax.Array) -> jax.Array:
  """||x - y||_2 / sqrt(D), D numbers in an example: [B, ...] -> [B]."""
  return _root(mean_squared(x, y))


def pseudo_huber(x: jax.Array, y: jax.Array, *, c: float | jax.Array) -> jax.Array:
  """sqrt(||x - y||_2^2 + c^2) - c: [B, ...] -> [B]. c = 0 is `euclidean`.

  Song and Dhariwal, Improved Techniques for Training Consistency Models (arXiv:2310.14189),
  Table 1, where c = 0.00054 sqrt(D).
  """
  return _root(jnp.sum(jnp.square(rows(x - y)), axis=-1) + c**2) - c


def mean_pseudo_huber(x: jax.Array, y: jax.Array, *, c: float = 0.001) -> jax.Array:
  """Mean over the numbers of an example of sqrt((x - y)^2 + c^2) - c: [B, ...] -> [B].

  The Huber loss of the code of Luo et al., Latent Consistency Models (arXiv:2310.04378): each
  number has its own, unlike `pseudo_huber`.
  """
  return jnp.mean(_root(jnp.square(rows(x - y)) + c**2) - c, axis=-1)


def ict_c(shape: tuple[int, ...]) -> float:
  """c = 0.00054 sqrt(D) of the pseudo-Huber distance, for arrays of shape [B, ...] of D numbers.

  Song and Dhariwal (arXiv:2310.14189), Table 1.
  """
  return 0.00054 * math.sqrt(math.prod(shape[1:]))


def boundary_scalings(
  sigma: jax.Array, *, sigma_data: float = 0.5, sigma_min: float = 0.002
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(c_skip, c_out, c_in) with c_skip = 1 and c_out = 0 at sigma_min: each like sigma.

  c_skip = sd^2 / ((sigma - sigma_min)^2 + sd^2), c_in = 1 / sqrt(sigma^2 + sd^2),
  c_out = (sigma - sigma_min) sd c_in. sigma_min = 0 gives EDM's own (arXiv:2206.00364, Table 1),
  which teachers use, and with which ECT trains.

  Song, Dhariwal, Chen, Sutskever, Consistency Models (arXiv:2303.01469).
  """
  c_in = 1 / jnp.sqrt(sigma**2 + sigma_data**2)
  c_skip = sigma_data**2 / ((sigma - sigma_min) ** 2 + sigma_data**2)
  return c_skip, (sigma - sigma_min) * sigma_data * c_in, c_in


def ctm_scalings(
  t: jax.Array,
  s: jax.Array,
  *,
  form: str = "euler",
  sigma_data: float = 0.5,
  sigma_min: float = 0.002,
) -> tuple[jax.Array, jax.Array]:
  """(on x, on g) of the jump G(x, t, s) from noise level t to s <= t, the identity at s = t.

  G = a x + (1 - s / t) g(x, t, s). "euler", the paper's: a = s / t. The authors' code also has
  "variance": a = v = sqrt(((s - sigma_min)^2 + sd^2) / ((t - sigma_min)^2 + sd^2)), and "mixed":
  a = (s + v) / (t + 1).

  Kim et al., Consistency Trajectory Models (arXiv:2310.02279).

  Raises:
    ValueError: there is no such form.
  """
  ratio = ((s - sigma_min) ** 2 + sigma_data**2) / ((t - sigma_min) ** 2 + sigma_data**2)
  match form:
    case "euler":
      on_x = s / t
    case "variance":
      on_x = jnp.sqrt(ratio)
    case "mixed":
      on_x = (s + jnp.sqrt(ratio)) / (t + 1)
    case _:
      raise ValueError(f"no form {form!r}: euler, variance, mixed")
  return on_x, 1 - s / t


def euler_step(x: jax.Array, denoised: jax.Array, sigma: jax.Array, then: jax.Array) -> jax.Array:
  """One Euler step of the probability-flow ODE dx / dsigma = (x - D(x)) / sigma.

  With the data itself in place of `denoised` it is x0 + `then` eps, the step of consistency
  training.

  Args:
    x, denoised: [B, ...], the noised images and the teacher's D(x, sigma).
    sigma, then: [B], from and to which noise level.
  """
  sigma, then = expand(sigma, x), expand(then, x)
  return x + (then - sigma) * (x - denoised) / sigma


def heun_step(
  x: jax.Array,
  denoised: jax.Array,
  euler: jax.Array,
  euler_denoised: jax.Array,
  sigma: jax.Array,
  then: jax.Array,
) -> jax.Array:
  """Heun's step: the slope is the mean of those at both ends of the Euler step.

  Args:
    x, denoised: [B, ...], the noised images and the teacher's D(x, sigma).
    euler, euler_denoised: [B, ...], `euler_step` of them and D(euler, then).
    sigma, then: [B], from and to which noise level; `then` is not 0.
  """
  sigma, then = expand(sigma, x), expand(then, x)
  slopes = (x - denoised) / sigma + (euler - euler_denoised) / then
  return x + (then - sigma) * slopes / 2


def consistency(
  online: jax.Array,
  target: jax.Array,
  *,
  distance: Distance = mean_squared,
  weight: jax.Array | float = 1.0,
  stop_target: bool = True,
) -> jax.Array:
  """w d(f(x_t, t), sg f(x_s, s)), t the noisier level: consistency distillation and training.

  Song et al., Consistency Models (arXiv:2303.01469): distillation with x_s by a step of the
  teacher, training with x_s = x0 + s eps.

  Args:
    online, target: [B, ...], the student at (x_t, t), and the student or its EMA at (x_s, s).
    distance: [B, ...], [B, ...] -> [B].
    weight: [B] or a number.
    stop_target: False lets the gradient into both sides, an option of the authors' JAX code.

  Returns:
    [B].
  """
  return weight * distance(online, jax.lax.stop_gradient(target) if stop_target else target)


def ict(
  online: jax.Array,
  target: jax.Array,
  sigma: jax.Array,
  then: jax.Array,
  *,
  c: float | None = None,
) -> jax.Array:
  """(sqrt(||f(x_t, t) - sg f(x_s, s)||^2 + c^2) - c) / (t - s): improved consistency training.

  Song and Dhariwal, Improved Techniques for Training Consistency Models (arXiv:2310.14189),
  Table 1. The target is the student itself, without an EMA.

  Args:
    online, target: [B, ...], the student at x0 + sigma eps and at x0 + then eps, eps and dropout
      the same.
    sigma, then: [B], t > s.
    c: 0.00054 sqrt(D) by default.

  Returns:
    [B].
  """
  return ect(online, target, sigma, then, c=ict_c(online.shape) if c is None else c)


def ect(
  online: jax.Array,
  target: jax.Array,
  t: jax.Array,
  r: jax.Array,
  *,
  c: float = 0.0,
) -> jax.Array:
  """(sqrt(||f(x_t, t) - sg f(x_r, r)||^2 + c^2) - c) / (t - r): easy consistency tuning.

  Geng et al., Consistency Models Made Easy (arXiv:2406.14548). c = 0, the default of the authors'
  code, is the Euclidean distance, not squared.

  Args:
    online: [B, ...], the student at x0 + t eps.
    target: [B, ...], `clean_at_zero` of the student at x0 + r eps.
    t, r: [B], t > r >= 0; `discretization.ect_r` gives r.

  Returns:
    [B].
  """
  return pseudo_huber(online, jax.lax.stop_gradient(target), c=c) / (t - r)


def clean_at_zero(denoised: jax.Array, x0: jax.Array, r: jax.Array) -> jax.Array:
  """The data where r = 0 (networks of log r may give NaN there), elsewhere `denoised`."""
  return jnp.where(expand(r, x0) > 0, denoised, x0)


def _root(square: jax.Array) -> jax.Array:
  """The square root, with gradient 0 at 0."""
  positive = square > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)
