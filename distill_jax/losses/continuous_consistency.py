"""Continuous-time consistency models: the loss is made of the derivative along the teacher's path.

In TrigFlow x_t = cos t x0 + sin t z, z = sigma_data eps, t in [0, pi / 2], the probability-flow
ODE is dx / dt = sigma_data F(x / sigma_data, t), and the consistency function of a network is
f(x, t) = cos t x - sin t sigma_data F(x / sigma_data, t). Its caller runs the network under
`jax.jvp` and passes the primal and the tangent.
"""

import jax
import jax.numpy as jnp

from distill_jax.losses.consistency import euclidean, mean_squared, rows
from distill_jax.losses.denoising import expand


def continuous(output: jax.Array, derivative: jax.Array) -> jax.Array:
  """-<sg df, f>: has the gradient of the squared consistency loss with ever finer steps.

  Song, Dhariwal, Chen, Sutskever, Consistency Models (arXiv:2303.01469), the pseudo
  objective with a stopped gradient; here of the squared distance. Its value says nothing. Without
  the stopped gradient the loss is a distance of `derivative` from zero.

  Args:
    output, derivative: [B, ...], the primal and the tangent of
      jax.jvp(f, (x, t), (t score, -1)), score the teacher's, or (x0 - x) / t^2 without a teacher.

  Returns:
    [B], a sum over the numbers of an example.
  """
  return -jnp.sum(rows(jax.lax.stop_gradient(derivative) * output), axis=-1)


def trigflow_velocity(x0: jax.Array, z: jax.Array, angle: jax.Array) -> jax.Array:
  """dx / dt = cos t z - sin t x0 of given data, the velocity of consistency training: [B, ...].

  Lu and Song, Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models
  (arXiv:2410.11081); z has the standard deviation sigma_data.
  """
  angle = expand(angle, x0)
  return jnp.cos(angle) * z - jnp.sin(angle) * x0


def scm_tangent(
  network: jax.Array,
  velocity: jax.Array,
  x: jax.Array,
  jvp: jax.Array,
  angle: jax.Array,
  *,
  sigma_data: float = 1.0,
  warmup: jax.Array | float = 1.0,
  rcm: bool = False,
) -> jax.Array:
  """g = -cos^2 t (sd F - dx/dt) - r (cos t sin t x + sd dF), stopped; r = 1: g = cos t df / dt.

  Lu and Song (arXiv:2410.11081); also Sana-Sprint's and FastGen's code. The code of
  rCM (arXiv:2510.08431) warms up otherwise: g = -cos t sqrt(1 - r^2 sin^2 t) (sd F - dx/dt)
  - (r cos t sin t x + sd dF). At r = 1 both are the same.

  Args:
    network: [B, ...], F(x / sd, t) of the student.
    velocity: [B, ...], dx/dt: sd F of the teacher (distillation) or `trigflow_velocity` (training).
    x: [B, ...], x_t.
    jvp: [B, ...], dF: the tangent of jax.jvp(F, (x / sd, t), (cos t sin t velocity / sd,
      cos t sin t)).
    angle: [B], t.
    warmup: r in [0, 1], a number or a traced scalar; see `discretization.tangent_warmup`.
    rcm: take rCM's form.

  Returns:
    [B, ...], to be passed through `normalised`.
  """
  cos, sin = jnp.cos(expand(angle, x)), jnp.sin(expand(angle, x))
  gap = sigma_data * network - velocity
  if rcm:
    first = -cos * jnp.sqrt(1 - warmup**2 * sin**2) * gap
    tangent = first - (warmup * cos * sin * x + sigma_data * jvp)
  else:
    tangent = -(cos**2) * gap - warmup * (cos * sin * x + sigma_data * jvp)
  return jax.lax.stop_gradient(tangent)


def normalised(tangent: jax.Array, *, c: float = 0.1, root_mean_square: bool = False) -> jax.Array:
  """g / (||g||_2 + c), the norm of each example: [B, ...] -> [B, ...].

  Lu and Song (arXiv:2410.11081). With noisy velocities, that is without a teacher,
  normalising by a norm of few numbers biases the mean of g; with images the bias is slight.

  Args:
    root_mean_square: ||g||_2 / sqrt(D) in place of ||g||_2, the default of FastGen's code: the
      same c then stands for another length.
  """
  norm = euclidean(tangent, jnp.zeros_like(tangent))
  if root_mean_square:
    norm = norm / (tangent.size / tangent.shape[0]) ** 0.5
  return tangent / (expand(norm, tangent) + c)


def scm(
  network: jax.Array,
  tangent: jax.Array,
  *,
  weight: jax.Array | float = 1.0,
  log_variance: jax.Array | float = 0.0,
) -> jax.Array:
  """w e^-u / D ||F - sg(F + g)||^2 + u, D numbers in an example.

  Lu and Song (arXiv:2410.11081), whose learned weight w_phi is -u. The reduction differs in code:
  Sana-Sprint's is this one, FastGen's divides by D once more by default, rCM's is D times as large,
  without u.

  Args:
    network: [B, ...], F of the student.
    tangent: [B, ...], g, normalised.
    weight: [B] or a number; `prior_weight` in the code of Sana-Sprint and FastGen.
    log_variance: [B] or a number, u(t), learned.

  Returns:
    [B].
  """
  target = jax.lax.stop_gradient(network + tangent)
  return weight * jnp.exp(-log_variance) * mean_squared(network, target) + log_variance


def prior_weight(angle: jax.Array, *, sigma_data: float = 1.0) -> jax.Array:
  """1 / (sigma_data tan t), one over EDM's noise level: the weight of Sana-Sprint's code."""
  return 1 / (sigma_data * jnp.tan(angle))


def without_nan(network: jax.Array, tangent: jax.Array) -> tuple[jax.Array, jax.Array]:
  """F and g, both 0 in examples where either holds a NaN; such an example has no gradient."""
  bad = jnp.any(jnp.isnan(rows(network)) | jnp.isnan(rows(tangent)), axis=-1)
  bad = expand(bad, network)
  return jnp.where(bad, 0.0, network), jnp.where(bad, 0.0, tangent)


def trig_step(x: jax.Array, velocity: jax.Array, step: jax.Array | float) -> jax.Array:
  """x at the angle t - step by DDIM: cos(step) x - sin(step) dx/dt; `step` is [B] or a number.

  Lu and Song (arXiv:2410.11081), the sampler of TrigFlow.
  """
  step = expand(step, x)
  return jnp.cos(step) * x - jnp.sin(step) * velocity


def difference_quotient(now: jax.Array, before: jax.Array, step: float) -> jax.Array:
  """(cos h F(x_t, t) - F(x_{t-h}, t - h)) / sin h, about dF/dt along the path: rCM's, without jvp.

  Zheng et al., Large Scale Diffusion Distillation via Score-Regularized Continuous-Time Consistency
  (rCM, arXiv:2510.08431), in its code. Times cos t sin t it takes the place of `jvp` in
  `scm_tangent`: with x_{t-h} = `trig_step`(x_t, velocity, h) for the whole derivative, with
  x_{t-h} = x_t for the part in t, the part in x being a jvp (semi-continuous time).
  """
  return (jnp.cos(step) * now - before) / jnp.sin(step)
