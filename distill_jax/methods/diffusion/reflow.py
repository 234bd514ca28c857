"""Reflow: rectified flow on pairs of a noise and what the teacher's ODE makes of it.

  x_t = (1 - t) x + t z,   x = the teacher's Heun sample from sigma_max z
  loss = d(v(x_t, t), z - x)

The paths of such pairs hardly cross, so the student's flow is nearly straight and one Euler step
from t = 1 samples it. The pairs are made inside the step. 2-RF++ draws t from a U-shaped density
(`times`) and takes a pseudo-Huber distance (`distance`); its LPIPS term is not here. SlimFlow's
annealing (`anneal` > 0) replaces z by sqrt(1 - b^2) z + b eps, b falling from 1 to 0 in so many
steps: from flow matching to reflow, for a student smaller than its teacher (`config.models`), which
has no weights to begin as. Its last stage, at t = 1 alone, is ode_pairs.py.

Paper: Liu, Gong, Liu, Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified
  Flow (arXiv:2209.03003).
Paper: Lee, Lin, Fanti, Improving the Training of Rectified Flows (arXiv:2405.20320).
Paper: Zhu, Liu, Liu, SlimFlow: Training Smaller One-Step Diffusion Models with Rectified Flow
  (arXiv:2407.12718).
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.diffusion import discretization, pairs, players, schedules
from distill_jax.diffusion import network as network_lib
from distill_jax.losses import consistency, flow_maps
from distill_jax.method import Method

FLOW = schedules.flow()


def make(config) -> Method:
  student, teacher = (network_lib.make(config, name) for name in ("student", "teacher"))
  tx = optim.make(config.optim, config.steps)
  method = config.method
  draw = dict(uniform=_uniform, u_shaped=discretization.u_shaped_times)[method.times]
  distances = dict(squared=consistency.mean_squared, pseudo_huber=flow_maps.scaled_pseudo_huber)
  distance = distances[method.distance]

  def init(key, pretrained):
    return players.start(config, key, pretrained, tx)

  def step(state, frozen, batch, key):
    def loss(params, batch, key):
      key_z, key_label, key_time, key_fresh = jax.random.split(key, 4)
      z = jax.random.normal(key_z, batch["x"].shape)
      condition = players.random_labels(student, key_label, len(z))
      x = pairs.endpoint(config, teacher, frozen["teacher"], z, condition)
      if method.anneal:
        b = jnp.maximum(1 - state["step"] / method.anneal, 0)
        z = jnp.sqrt(1 - b**2) * z + b * jax.random.normal(key_fresh, z.shape)
      t = draw(key_time, len(z))
      x_t = flow_maps.interpolate(x, z, t)
      velocity = network_lib.predict(student, params, x_t, t, FLOW, "flow", condition)
      return players.total(flow_maps.rectified_flow(velocity, x, z, distance=distance)), {}

    state, metrics = players.move(config, tx, loss, state, batch, key)
    return dict(state, step=state["step"] + 1), metrics

  return Method(init, step)


def _uniform(key: jax.Array, count: int) -> jax.Array:
  return jax.random.uniform(key, (count,))
