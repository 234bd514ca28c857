"""Shortcut models: a network that is told its step size, from 1/M up to 1, by doubling.

  z_t = (1 - t) x0 + t eps,   v(z, t, d) the velocity, towards the data, of a step of size d
  d = 0:      v = x0 - eps
  d = 2^-k:   v = (v(z, t, d/2) + v(z', t - d/2, d/2)) / 2,   z' = z + d/2 v(z, t, d/2)

Most of the batch is flow matching at d = 0, which is the step of size 1/M = 2^-levels; the first
`bootstrap` of it learns that one step does what two of half its size do, as the moving average of
the student (the first of config.ema) does them. The step size is told as the second time t - d.
With `solver="teacher"` the velocity at d = 0 is a teacher's, not x0 - eps. Guidance in the smallest
step is not here.

Paper: Frans, Hafner, Levine, Abbeel, One Step Diffusion via Shortcut Models (arXiv:2410.12557),
  algorithm 1.
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.diffusion import discretization, players, schedules
from distill_jax.diffusion import network as network_lib
from distill_jax.losses import consistency, flow_maps
from distill_jax.method import Method

FLOW = schedules.flow()


def make(config) -> Method:
  student, teacher = (network_lib.make(config, name) for name in ("student", "teacher"))
  tx = optim.make(config.optim, config.steps)
  method = config.method
  taught, clip, base = method.solver == "teacher", method.clip or None, 2.0**-method.levels

  def init(key, pretrained):
    return players.start(config, key, pretrained, tx, teacher=taught)

  def velocity(params, z, t, d, condition):
    """Towards the data; a step of the base size is the instantaneous velocity."""
    r = t - jnp.where(d <= base, 0, d)
    return -network_lib.average_velocity(student, params, z, t, r, FLOW, condition)

  def doubled(params, z, t, d, condition):
    """The target of a step of size d."""
    first = velocity(params, z, t, d / 2, condition)
    middle = flow_maps.shortcut_midpoint(z, first, d / 2, clip=clip)
    second = velocity(params, middle, t - d / 2, d / 2, condition)
    return flow_maps.shortcut_target(first, second, clip=clip)

  def step(state, frozen, batch, key):
    average = next(iter(state["ema"].values()))

    def loss(params, batch, key):
      key_time, key_noise = jax.random.split(key)
      x0, condition = batch["x"], players.label_of(student, batch)
      count = int(len(x0) * method.bootstrap)
      levels = discretization.shortcut_levels(count, method.levels)
      d = jnp.append(2.0**-levels, jnp.full(len(x0) - count, base))
      t = 1 - d * jnp.floor(jax.random.uniform(key_time, d.shape) / d)
      eps = jax.random.normal(key_noise, x0.shape)
      z = schedules.noised(FLOW, x0, eps, t)
      goal = x0 - eps
      if taught:
        goal = -network_lib.predict(teacher, frozen["teacher"], z, t, FLOW, "flow", condition)
      of_steps = jax.tree.map(lambda a: a[:count], (z, t, d, condition))
      target = jnp.concatenate([doubled(average, *of_steps), goal[count:]])
      made = velocity(params, z, t, d, condition)
      return players.total(consistency.mean_squared(made, jax.lax.stop_gradient(target))), {}

    state, metrics = players.move(config, tx, loss, state, batch, key)
    return dict(state, step=state["step"] + 1), metrics

  return Method(init, step)
