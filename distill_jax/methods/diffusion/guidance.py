"""Guidance distillation, stage one: a student that is told the scale does in one evaluation what
its guided teacher does in two.

  loss = w |f(x_t, t, y, scale) - sg(u + scale (c - u))|^2,   scale uniform in [low, high]

c and u are the teacher's denoised images with and without the label. The second stage is
progressive.py of a student with the condition "guidance" that begins as this one.

Paper: Meng et al., On Distillation of Guided Diffusion Models (arXiv:2210.03142), algorithm 1,
  whose w is scale - 1.
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.diffusion import network as network_lib
from distill_jax.diffusion import players, times
from distill_jax.losses import trajectories
from distill_jax.method import Method


def make(config) -> Method:
  student, teacher = (network_lib.make(config, name) for name in ("student", "teacher"))
  tx = optim.make(config.optim, config.steps)
  method = config.method

  def init(key, pretrained):
    return players.start(config, key, pretrained, tx)

  def step(state, frozen, batch, key):
    def loss(params, batch, key):
      key_noise, key_scale = jax.random.split(key)
      x_t, sigma = players.noised(config, key_noise, batch["x"])
      condition = players.label_of(student, batch)
      scale = times.guidance(method.guidance, key_scale, len(x_t))
      null = network_lib.null_condition(teacher, condition)
      conditional, unconditional = (
        network_lib.denoise(teacher, frozen["teacher"], x_t, sigma, c) for c in (condition, null)
      )
      told = dict(condition, guidance=scale)
      online = network_lib.denoise(student, params, x_t, sigma, told)
      value = trajectories.guidance(
        online, conditional, unconditional, scale, -2 * jnp.log(sigma), weight=method.weight
      )
      return players.total(value), {}

    state, metrics = players.move(config, tx, loss, state, batch, key)
    return dict(state, step=state["step"] + 1), metrics

  return Method(init, step)
