"""Trajectory-backward consistency: sCM on the teacher's own path from noise, without images.

  x_1 = sigma_max z,   t_1 > t_2 > ... > t_K random,   dx_k = the teacher's velocity at (x_k, t_k)
  x_{k+1} = cos(t_k - t_{k+1}) x_k - sin(t_k - t_{k+1}) dx_k
  loss: sCM's at all (x_k, t_k, dx_k)

One evaluation of the teacher serves both the path and the loss. A path starts at sigma_max, where
TrigFlow's coefficients are finite, and not at pi / 2, so that its first point is used as well; a
batch of B is B / K paths. The authors' code also lets the tangent's rate fall again at the end, and
guides the teacher; that is not here.

Paper: Tang et al., Image-Free Timestep Distillation via Continuous-Time Consistency with
  Trajectory-Sampled Pairs (arXiv:2511.20410).
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.diffusion import discretization, players, schedules, tangents, times
from distill_jax.diffusion import network as network_lib
from distill_jax.losses import continuous_consistency as scm
from distill_jax.method import Method


def make(config) -> Method:
  student, teacher = (network_lib.make(config, name) for name in ("student", "teacher"))
  tx, trig = optim.make(config.optim, config.steps), schedules.trigflow(student.sigma_data)
  method = config.method

  def init(key, pretrained):
    return players.start(config, key, pretrained, tx)

  def path(frozen, z, angles, condition):
    """x_k and the velocity there, [K, n, ...] each; z [n, ...], angles [K, n]."""

    def along(x, t):
      now, after = t
      velocity = network_lib.predict(teacher, frozen["teacher"], x, now, trig, "flow", condition)
      return scm.trig_step(x, velocity, now - after), (x, velocity)

    x = schedules.noised(trig, jnp.zeros_like(z), z, angles[0])
    after = jnp.append(angles[1:], angles[-1:], axis=0)
    return jax.lax.scan(along, x, (angles, after))[1]

  def step(state, frozen, batch, key):
    warmup = discretization.tangent_warmup(state["step"], method.tangent_warmup)

    def loss(params, batch, key):
      key_z, key_label, key_time = jax.random.split(key, 3)
      k, n = method.points, len(batch["x"]) // method.points
      z = jax.random.normal(key_z, (n, *student.shape))
      condition = players.random_labels(student, key_label, n)
      sigmas = times.draw(config.noise, key_time, k * n).reshape(k, n)
      first = jnp.full((1, n), config.noise.sigma_max)
      sigmas = jnp.append(first, jnp.minimum(-jnp.sort(-sigmas, axis=0), first)[1:], axis=0)
      angles = jnp.arctan(sigmas / student.sigma_data)
      x, velocity = jax.lax.stop_gradient(path(frozen, z, angles, condition))
      x, velocity, angles = (a.reshape(k * n, *a.shape[2:]) for a in (x, velocity, angles))
      condition = jax.tree.map(lambda a: jnp.tile(a, k), condition)
      value = tangents.consistency(
        config, student, params, x, angles, velocity, condition, warmup=warmup
      )
      return players.total(value), {}

    state, metrics = players.move(config, tx, loss, state, batch, key)
    return dict(state, step=state["step"] + 1), metrics

  return Method(init, step)
