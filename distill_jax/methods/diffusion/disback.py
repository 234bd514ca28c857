"""Distribution matching along the teacher's way back: the targets are networks between the first
student's distribution and the teacher.

  1. degradation: a copy phi_0 of the teacher learns, by denoising, what the first student makes; on
     the way its weights are kept, phi_0, ..., phi_K-1
  2. recovery: distribution matching with f_phi_k as the teacher's denoised image, k from K - 1 down
     to 0, `hold` steps each and phi_0 to the end; the fake score begins as phi_K-1
     grad G = (f_psi(x_t) - f_phi_k(x_t)) / mean |x - f_phi_k(x_t)| . dG

The two stages are one program that looks at the step. An exact teacher has no weights to copy: then
phi_0 is the network that the student begins as, and the exact one is the target once k is 0.

Paper: Zhang et al., Distribution Backtracking Builds A Faster Convergence Trajectory for Diffusion
  Distillation (arXiv:2408.15991).
"""

from typing import Any

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.diffusion import fake_score, players
from distill_jax.diffusion import network as network_lib
from distill_jax.losses import scores
from distill_jax.method import Method


def make(config) -> Method:
  names = ("student", "teacher", "fake")
  student, teacher, fake = (network_lib.make(config, name) for name in names)
  tx, fake_tx = optim.make(config.optim, config.steps), optim.make(config.fake_optim, config.steps)
  method = config.method
  if method.checkpoints < 2 or method.degradation % (method.checkpoints - 1):
    raise ValueError("method.degradation: steps in method.checkpoints - 1 equal parts")
  every = max(method.degradation // (method.checkpoints - 1), 1)

  def init(key, pretrained):
    state, frozen = players.start(config, key, pretrained, tx, fake=(None, fake_tx))
    copies = (method.checkpoints,)
    state["way"] = jax.tree.map(lambda x: jnp.broadcast_to(x, copies + x.shape), state["fake"])
    return state, frozen

  def step(state, frozen, batch, key):
    key_z, key_student, key_fake = jax.random.split(key, 3)
    batch = dict(batch, z=jax.random.normal(key_z, batch["x"].shape))
    place = target_index(state["step"], method.checkpoints, method.degradation, method.hold)

    def generate(params, batch):
      condition = players.label_of(student, batch)
      return network_lib.generate(student, params, batch["z"], config.sampler.sigmas[0], condition)

    def follow(state):
      made = generate(state["student"], batch)
      return fake_score.follow(config, fake_tx, fake, state, dict(batch, made=made), key_fake)

    def degrade(state):
      """The fake score moves, and is kept where a part ends."""
      way, (state, metrics) = state["way"], follow(state)
      done = state["step"] + 1
      k = jnp.where(done % every == 0, done // every, method.checkpoints)  # past the end: dropped
      way = jax.tree.map(lambda w, x: w.at[k].set(x, mode="drop"), way, state["fake"])
      return dict(state, way=way, step=done), metrics

    def student_move(state):
      def loss(params, batch, key):
        x, condition = generate(params, batch), players.label_of(student, batch)
        x_t, sigma = players.noised(config, key, x)
        kept = network_lib.denoise(fake, pick(state["way"], place), x_t, sigma, condition)
        exact = network_lib.denoise(teacher, frozen["teacher"], x_t, sigma, condition)
        real = jnp.where(place == 0, exact, kept)
        made = network_lib.denoise(fake, state["fake"], x_t, sigma, condition)
        value = scores.distribution_matching(x, *jax.lax.stop_gradient((real, made)), epsilon=1e-6)
        gap = players.mean((real - made) ** 2)
        return players.total(players.mean(value)), dict(score_gap=players.total(gap))

      return players.move(config, tx, loss, state, batch, key_student)

    def recover(state):
      return players.alternate(config, state, student_move, follow)

    shapes = jax.eval_shape(recover, state)[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def first(state):
      state, metrics = degrade(state)
      return state, zeros | metrics

    state, metrics = jax.lax.cond(state["step"] < method.degradation, first, recover, state)
    return state, metrics | dict(target=(place.astype(jnp.float32), jnp.float32(1)))

  return Method(init, step)


def target_index(step: jax.Array, checkpoints: int, degradation: int, hold: int) -> jax.Array:
  """The checkpoint that is the target at a step, int32; the last one until degradation is over."""
  return jnp.clip(checkpoints - 1 - (step - degradation) // hold, 0, checkpoints - 1)


def pick(stacked: Any, index: jax.Array) -> Any:
  """One tree of those that are stacked on the first axis."""
  return jax.tree.map(lambda x: x[index], stacked)
