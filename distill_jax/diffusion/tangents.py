"""The loss of continuous-time consistency at given points of a path, with its one jvp."""

import jax
import jax.numpy as jnp

from distill_jax.diffusion.network import Condition, Network, Params
from distill_jax.losses import continuous_consistency as scm
from distill_jax.losses.denoising import expand


def consistency(
  config,
  student: Network,
  params: Params,
  x: jax.Array,
  t: jax.Array,
  velocity: jax.Array,
  condition: Condition,
  *,
  warmup: jax.Array,
  normalize: bool = True,
  rcm: bool = False,
) -> jax.Array:
  """w(t) / D |F - sg(F + g)|^2 with the tangent g of sCM, or of rCM: [B].

  Args:
    config: method.c, of the normalised g / (|g| + c), and method.prior_weight, whether w is
      1 / sigma or 1.
    student, params: F.
    x: [B, ...], x_t on TrigFlow's path.
    t: [B], its angle.
    velocity: [B, ...], dx/dt there.
    condition: of the student.
    warmup: r of `continuous_consistency.scm_tangent`.
    normalize: False leaves g as it is.
    rcm: rCM's form of the warm-up.

  References:
    Lu and Song, Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models
    (arXiv:2410.11081).
  """
  scale, speed = student.sigma_data, jnp.cos(t) * jnp.sin(t)

  def network(x, t):
    return student.raw(params, x, t, condition)[0]

  tangents = (expand(speed, x) * velocity / scale, speed)
  f, df = jax.jvp(network, (x / scale, t), jax.lax.stop_gradient(tangents))
  g = scm.scm_tangent(f, velocity, x, df, t, sigma_data=scale, warmup=warmup, rcm=rcm)
  g = scm.normalised(g, c=config.method.c) if normalize else g
  weight = scm.prior_weight(t, sigma_data=scale) if config.method.prior_weight else 1.0
  return scm.scm(f, g, weight=weight)
