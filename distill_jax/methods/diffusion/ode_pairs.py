"""Knowledge distillation on pairs of a noise and the end of the teacher's ODE, to one step.

  x = the teacher's Heun sample from sigma_max z,   loss = |G(z, y) - x|^2 / (2 D)

The pairs are made inside the step, fresh at each: the student needs no data. The paper stores them.

Paper: Luhman and Luhman, Knowledge Distillation in Iterative Generative Models for Improved
  Sampling Speed (arXiv:2101.02388).
"""

import jax

from distill_jax import optim
from distill_jax.diffusion import network as network_lib
from distill_jax.diffusion import pairs, players
from distill_jax.losses import trajectories
from distill_jax.method import Method


def make(config) -> Method:
  student, teacher = (network_lib.make(config, name) for name in ("student", "teacher"))
  tx = optim.make(config.optim, config.steps)

  def init(key, pretrained):
    return players.start(config, key, pretrained, tx)

  def step(state, frozen, batch, key):
    def loss(params, batch, key):
      key_z, key_label = jax.random.split(key)
      z = jax.random.normal(key_z, batch["x"].shape)
      condition = players.random_labels(student, key_label, len(z))
      x = pairs.endpoint(config, teacher, frozen["teacher"], z, condition)
      made = network_lib.generate(student, params, z, config.noise.sigma_max, condition)
      return players.total(trajectories.ode_regression(made, x)), {}

    state, metrics = players.move(config, tx, loss, state, batch, key)
    return dict(state, step=state["step"] + 1), metrics

  return Method(init, step)
