"""Flow maps: MeanFlow, shortcut models, rectified flow and reflow.

A flow dx / dt = v(x, t) between data and noise has the average velocity u(x_t, t, r) =
(x_t - x_r) / (t - r); one evaluation of it jumps from t to r. MeanFlow puts data at t = 0, z_t =
(1 - t) x0 + t eps, v = eps - x0. Shortcut models and rectified flow put noise at t = 0.
"""

import jax
import jax.numpy as jnp

from distill_jax.losses.consistency import (
  Distance,
  euclidean,
  mean_squared,
  pseudo_huber,
  rows,
)
from distill_jax.losses.denoising import expand


def jump(x: jax.Array, velocity: jax.Array, t: jax.Array, r: jax.Array) -> jax.Array:
  """x_r = x_t - (t - r) u: exact for the average velocity, an Euler step for the instantaneous one.

  Args:
    x, velocity: [B, ...].
    t, r: [B], from and to which time.
  """
  return x - expand(t - r, x) * velocity


def meanflow_target(
  velocity: jax.Array,
  jvp: jax.Array,
  t: jax.Array,
  r: jax.Array,
  *,
  warmup: jax.Array | float = 1.0,
  max_interval: float = 1.0,
) -> jax.Array:
  """u_tgt = v - (t - r) du/dt, stopped: the MeanFlow identity.

  Geng, Deng, Bai, Kolter, He, Mean Flows for One-step Generative Modeling (arXiv:2505.13447).

  Args:
    velocity: [B, ...], eps - x0, or a guided or a teacher's velocity at (z_t, t).
    jvp: [B, ...], du/dt: the tangent of jax.jvp(u, (z, t, r), (velocity, 1, 0)).
    t, r: [B]; t - r is clipped to [0, max_interval].
    warmup: factor of du/dt in [0, 1], an option of FastGen's code (whose max_interval is 0.999).
  """
  interval = expand(jnp.clip(t - r, 0.0, max_interval), velocity)
  return jax.lax.stop_gradient(velocity - warmup * interval * jvp)


def meanflow(
  average: jax.Array, target: jax.Array, *, p: float = 1.0, c: float = 0.01
) -> jax.Array:
  """l / sg(l + c)^p with l = ||u - sg u_tgt||_2^2, a sum: MeanFlow's loss.

  Geng et al. (arXiv:2505.13447); p and c as in the authors' code. p = 0 is the squared error. With
  p > 0 and the noisy velocity eps - x0 the minimiser is not the mean velocity: the bias is large in
  one dimension and falls with the dimension (tests/closed_form/trajectories_test.py).

  Args:
    average: [B, ...], u(z_t, t, r) of the student.
    target: [B, ...], `meanflow_target`.

  Returns:
    [B].
  """
  return adaptive(_squares(average, jax.lax.stop_gradient(target)), p=p, c=c)


def adaptive(squares: jax.Array, *, p: float = 1.0, c: float = 0.01) -> jax.Array:
  """l / sg(l + c)^p, elementwise: an example weighs the less the larger its squared error l.

  Geng et al. (arXiv:2505.13447).
  """
  return squares / jax.lax.stop_gradient(squares + c) ** p


def meanflow_normalised(
  average: jax.Array,
  target: jax.Array,
  *,
  p: float = 1.0,
  c: float = 0.1,
  scaled: bool = False,
) -> jax.Array:
  """||u - sg(u + w g)||_2^2, g = u_tgt - u, w = (||g||_2 + c)^-p: a step along a normalised g.

  An option of FastGen's code, in the manner of sCM's tangents. Its gradient is 2 w (u - u_tgt).

  Args:
    average, target: [B, ...], as in `meanflow`.
    scaled: g / sqrt(D) in place of g, D numbers in an example.

  Returns:
    [B].
  """
  tangent = jax.lax.stop_gradient(target - average)
  if scaled:
    tangent = tangent / (tangent.size / tangent.shape[0]) ** 0.5
  weight = (euclidean(tangent, jnp.zeros_like(tangent)) + c) ** -p
  goal = jax.lax.stop_gradient(average + expand(weight, tangent) * tangent)
  return _squares(average, goal)


def meanflow_guided(
  velocity: jax.Array,
  unconditional: jax.Array,
  conditional: jax.Array | None = None,
  *,
  omega: jax.Array | float,
  kappa: jax.Array | float = 0.0,
) -> jax.Array:
  """omega v + (1 - omega - kappa) u(z, t, t) + kappa u(z, t, t | y), without a gradient.

  Geng et al. (arXiv:2505.13447), in the form of the authors' code: the velocity that makes the
  student guided at one evaluation. The effective scale of guidance is omega / (1 - kappa).

  Args:
    velocity: [B, ...], eps - x0.
    unconditional, conditional: [B, ...], the student at r = t; `conditional` may be left out at
      kappa = 0.
    omega, kappa: [B] or numbers; omega = 1, kappa = 0 is no guidance.
  """
  omega, kappa = expand(omega, velocity), expand(kappa, velocity)
  guided = omega * velocity + (1 - omega - kappa) * unconditional
  if conditional is not None:
    guided = guided + kappa * conditional
  return jax.lax.stop_gradient(guided)


def improved_meanflow(
  average: jax.Array,
  jvp: jax.Array,
  head: jax.Array,
  velocity: jax.Array,
  t: jax.Array,
  r: jax.Array,
  *,
  p: float = 1.0,
  c: float = 0.01,
) -> jax.Array:
  """adaptive ||V - v||^2 + adaptive ||v_head - v||^2, V = u + (t - r) sg(du/dt).

  Geng et al., Improved Mean Flows: On the Challenges of Fastforward Generative Models
  (arXiv:2512.02012), in the form of the authors' code: a regression on the velocity, with du/dt
  taken along the network's own velocity and not along eps - x0.

  Args:
    average: [B, ...], u(z_t, t, r) of the student.
    jvp: [B, ...], the tangent of jax.jvp(u, (z, t, r), (head at r = t, 1, 0)).
    head: [B, ...], the second output of the network, its instantaneous velocity.
    velocity: [B, ...], eps - x0 or `improved_meanflow_guided`.
    t, r: [B].

  Returns:
    [B], sums over the numbers of an example.
  """
  compound = average + expand(t - r, average) * jax.lax.stop_gradient(jvp)
  velocity = jax.lax.stop_gradient(velocity)
  first, second = _squares(compound, velocity), _squares(head, velocity)
  return adaptive(first, p=p, c=c) + adaptive(second, p=p, c=c)


def improved_meanflow_guided(
  velocity: jax.Array, unconditional: jax.Array, conditional: jax.Array, scale: jax.Array | float
) -> jax.Array:
  """v + (1 - 1 / w) (v_c - v_u), without a gradient, w [B] or a number; w = 1 is no guidance.

  Geng et al. (arXiv:2512.02012), in the form of the authors' code: v_c is the network's velocity
  at guidance w, so that v_c = v_u + w (v - v_u) where it is learned.
  """
  scale = expand(scale, velocity)
  return jax.lax.stop_gradient(velocity + (1 - 1 / scale) * (conditional - unconditional))


def shortcut_midpoint(
  x: jax.Array, velocity: jax.Array, half: jax.Array, *, clip: float | None = 4.0
) -> jax.Array:
  """x + half v, clipped: where the first of two half steps ends; `half` [B], noise at t = 0."""
  return _clip(x + expand(half, x) * velocity, clip)


def shortcut_target(first: jax.Array, second: jax.Array, *, clip: float | None = 4.0) -> jax.Array:
  """(v_1 + v_2) / 2, clipped, without a gradient: one step of size d does what two of d / 2 did.

  Frans, Hafner, Levine, Abbeel, One Step Diffusion via Shortcut Models (arXiv:2410.12557).
  The clipping is that of the authors' code; None leaves it out. The loss is
  `mean_squared`.

  Args:
    first: [B, ...], the student at (x, t, d / 2).
    second: [B, ...], the student at (`shortcut_midpoint`, t + d / 2, d / 2).
  """
  return jax.lax.stop_gradient(_clip((first + second) / 2, clip))


def rectified_flow(
  velocity: jax.Array, start: jax.Array, end: jax.Array, *, distance: Distance = mean_squared
) -> jax.Array:
  """d(v, end - start): flow matching on given pairs, at a point of the line between them.

  Liu, Gong, Liu, Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow
  (arXiv:2209.03003). On pairs of a noise and what the last flow made of it, it is reflow.

  Args:
    velocity: [B, ...], the student at ((1 - t) start + t end, t).
    start, end: [B, ...].
    distance: [B, ...], [B, ...] -> [B]; 2-RF++ uses `scaled_pseudo_huber`.

  Returns:
    [B].
  """
  return distance(velocity, jax.lax.stop_gradient(end - start))


def scaled_pseudo_huber(x: jax.Array, y: jax.Array) -> jax.Array:
  """(sqrt(||x - y||_2^2 + c^2) - c) / D with c = 0.00054 D: [B, ...] -> [B].

  Lee, Lin, Fanti, Improving the Training of Rectified Flows (2-RF++, arXiv:2405.20320), in the form
  of the authors' code; improved consistency training has c = 0.00054 sqrt(D).
  """
  count = x.size // x.shape[0]
  return pseudo_huber(x, y, c=0.00054 * count) / count


def interpolate(start: jax.Array, end: jax.Array, t: jax.Array) -> jax.Array:
  """(1 - t) start + t end: [B, ...], t [B]."""
  t = expand(t, start)
  return (1 - t) * start + t * end


def _squares(x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.sum(jnp.square(rows(x - y)), axis=-1)


def _clip(x: jax.Array, bound: float | None) -> jax.Array:
  return x if bound is None else jnp.clip(x, -bound, bound)
