"""MeanFlow: a network of the average velocity between two times, one step from noise to data.

  z = (1 - t) x0 + t eps,   v = eps - x0,   u(z, t, r) the average velocity from t down to r
  u_target = sg(v - (t - r) du/dt),   du/dt = jvp of u along (v, 1, 0)
  loss = l / sg(l + c)^p,   l = |u - u_target|^2

A share of the examples has r = t, where this is flow matching. With `solver="teacher"` v is the
velocity of a teacher instead. One jvp gives u and du/dt: 4 forward-equivalents a step. `improved`
regresses V = u + (t - r) sg(du/dt) and u(z, t, t) on v, with du/dt along u(z, t, t) and not along
the noisy v; the paper's network has a second head for that velocity, ours is asked twice. Guidance
is learned in: v becomes w v + (1 - w) u(z, t, t | no label).

Paper: Geng, Deng, Bai, Kolter, He, Mean Flows for One-step Generative Modeling (arXiv:2505.13447),
  algorithm 1.
Paper: Geng et al., Improved Mean Flows: On the Challenges of Fastforward Generative Models
  (arXiv:2512.02012).
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.diffusion import network as network_lib
from distill_jax.diffusion import players, schedules, times
from distill_jax.losses import flow_maps
from distill_jax.method import Method

FLOW = schedules.flow()


def make(config) -> Method:
  student, method = network_lib.make(config, "student"), config.method
  teacher = network_lib.make(config, "teacher")
  tx = optim.make(config.optim, config.steps)
  taught = method.solver == "teacher"

  def init(key, pretrained):
    return players.start(config, key, pretrained, tx, teacher=taught)

  def velocity_of(params, frozen, z, t, x0, eps, condition):
    """v at (z, t), guided, without gradient."""
    if taught:
      return network_lib.predict(teacher, frozen["teacher"], z, t, FLOW, "flow", condition)
    if method.guidance == 1:
      return eps - x0
    null = network_lib.null_condition(student, condition)
    own = network_lib.average_velocity(student, params, z, t, t, FLOW, null)
    return flow_maps.meanflow_guided(eps - x0, own, omega=method.guidance)

  def step(state, frozen, batch, key):
    def loss(params, batch, key):
      key_time, key_noise, key_drop = jax.random.split(key, 3)
      x0 = batch["x"]
      eps = jax.random.normal(key_noise, x0.shape)
      t, r = _times(config, key_time, len(x0))
      z = schedules.noised(FLOW, x0, eps, t)
      condition = players.label_of(student, batch)
      v = velocity_of(params, frozen, z, t, x0, eps, condition)
      condition = players.drop(student, condition, key_drop, method.label_drop)

      def average(z, t, r):
        return network_lib.average_velocity(student, params, z, t, r, FLOW, condition)

      steady = average(z, t, t) if method.improved else v
      tangents = (jax.lax.stop_gradient(steady), jnp.ones_like(t), jnp.zeros_like(r))
      u, du = jax.jvp(average, (z, t, r), tangents)
      if method.improved:
        value = flow_maps.improved_meanflow(u, du, steady, v, t, r, p=method.p, c=method.c)
      else:
        target = flow_maps.meanflow_target(v, du, t, r)
        value = flow_maps.meanflow(u, target, p=method.p, c=method.c)
      return players.total(value), {}

    state, metrics = players.move(config, tx, loss, state, batch, key)
    return dict(state, step=state["step"] + 1), metrics

  return Method(init, step)


def _times(config, key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """t >= r in [0, 1] of the flow, r = t for a share `method.equal` of the examples."""
  key_t, key_r, key_equal = jax.random.split(key, 3)
  first, second = (times.draw(config.noise, k, count) for k in (key_t, key_r))
  first, second = first / (1 + first), second / (1 + second)
  t, r = jnp.maximum(first, second), jnp.minimum(first, second)
  equal = jax.random.bernoulli(key_equal, config.method.equal, (count,))
  return t, jnp.where(equal, t, r)
