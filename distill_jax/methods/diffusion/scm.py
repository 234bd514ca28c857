"""Continuous-time consistency models, simplified: sCD from a teacher, sCT on data.

  x_t = cos t x0 + sin t z,   z ~ N(0, s^2),   s = sigma_data
  f(x, t) = cos t x - sin t s F(x / s, t), the consistency function
  g = -cos^2 t (s F - dx/dt) - r (cos t sin t x_t + s dF/dt),   r warms up to 1
  loss = w(t) / D |F - sg(F + g / (|g| + c))|^2

dx/dt is the teacher's velocity or cos t z - sin t x0; dF/dt is one jvp along the path, whose primal
is the F of the loss: 4 forward-equivalents a step, and the teacher's. At r = 1, g = cos t df/dt.

Paper: Lu and Song, Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models
  (arXiv:2410.11081), algorithm 1.
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
  method, scale = config.method, student.sigma_data
  tx, trig = optim.make(config.optim, config.steps), schedules.trigflow(student.sigma_data)
  taught = method.solver == "teacher"

  def init(key, pretrained):
    return players.start(config, key, pretrained, tx, teacher=taught)

  def step(state, frozen, batch, key):
    warmup = discretization.tangent_warmup(state["step"], method.tangent_warmup)

    def loss(params, batch, key):
      key_time, key_noise, key_drop = jax.random.split(key, 3)
      x0, condition = batch["x"], players.label_of(student, batch)
      condition = players.drop(student, condition, key_drop, method.label_drop)
      t = jnp.arctan(times.draw(config.noise, key_time, len(x0)) / scale)
      eps = jax.random.normal(key_noise, x0.shape)
      x = schedules.noised(trig, x0, eps, t)
      if taught:
        velocity = network_lib.predict(teacher, frozen["teacher"], x, t, trig, "flow", condition)
      else:
        velocity = scm.trigflow_velocity(x0, scale * eps, t)

      value = tangents.consistency(
        *(config, student, params, x, t, velocity, condition),
        warmup=warmup,
        normalize=method.normalize,
      )
      return players.total(value), {}

    state, metrics = players.move(config, tx, loss, state, batch, key)
    return dict(state, step=state["step"] + 1), metrics

  return Method(init, step)
