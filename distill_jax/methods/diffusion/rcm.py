"""Score-regularised consistency: sCM for what the teacher covers, DMD for what a sample looks like.

  student:  sCM's loss on noised data  +  score_weight (2 DMD's loss of its own samples)
  fake:     lambda(sigma) |f_psi(x + sigma eps) - x|^2,   x the student's samples

The consistency loss is a forward divergence, which covers modes and blurs details; distribution
matching is a reverse one. The student's samples come of backward simulation through `sigmas`. The
fake score moves `ratio` times for each move of the student. The tangent warms up in rCM's form.
Its losses are sums over an example's numbers, these are means, so that the weight holds in any
dimension; its finite differences in place of the jvp are not here.

Paper: Zheng et al., Large Scale Diffusion Distillation via Score-Regularized Continuous-Time
  Consistency (arXiv:2510.08431).
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.diffusion import (
  discretization,
  fake_score,
  few_step,
  players,
  schedules,
  tangents,
  times,
)
from distill_jax.diffusion import network as network_lib
from distill_jax.losses import scores
from distill_jax.method import Method


def make(config) -> Method:
  names = ("student", "teacher", "fake")
  student, teacher, fake = (network_lib.make(config, name) for name in names)
  tx, fake_tx = optim.make(config.optim, config.steps), optim.make(config.fake_optim, config.steps)
  method, trig = config.method, schedules.trigflow(student.sigma_data)

  def init(key, pretrained):
    return players.start(config, key, pretrained, tx, fake=(None, fake_tx))

  def consistency(params, frozen, batch, key, warmup):
    key_time, key_noise = jax.random.split(key)
    x0, condition = batch["x"], players.label_of(student, batch)
    t = jnp.arctan(times.draw(method.noise, key_time, len(x0)) / student.sigma_data)
    x = schedules.noised(trig, x0, jax.random.normal(key_noise, x0.shape), t)
    velocity = network_lib.predict(teacher, frozen["teacher"], x, t, trig, "flow", condition)
    return tangents.consistency(
      config, student, params, x, t, velocity, condition, warmup=warmup, rcm=True
    )

  def step(state, frozen, batch, key):
    key_start, key_student, key_fake = jax.random.split(key, 3)
    warmup = discretization.tangent_warmup(state["step"], method.tangent_warmup)
    condition = players.label_of(student, batch)
    x, sigma = few_step.simulate(
      student, state["student"], key_start, len(batch["x"]), method.sigmas, condition
    )
    batch = dict(batch, start=x, start_sigma=sigma)

    def generate(params, batch):
      condition = players.label_of(student, batch)
      return network_lib.denoise(student, params, batch["start"], batch["start_sigma"], condition)

    def student_move(state):
      def loss(params, batch, key):
        key_scm, key_noise = jax.random.split(key)
        x, condition = generate(params, batch), players.label_of(student, batch)
        x_t, sigma = players.noised(config, key_noise, x)
        real, made = (
          jax.lax.stop_gradient(network_lib.denoise(network, params, x_t, sigma, condition))
          for network, params in ((teacher, frozen["teacher"]), (fake, state["fake"]))
        )
        matching = players.mean(2 * scores.distribution_matching(x, real, made, floor=1e-5))
        value = consistency(params, frozen, batch, key_scm, warmup)
        gap = players.mean((real - made) ** 2)
        metrics = dict(score_gap=players.total(gap), consistency=players.total(value))
        return players.total(value + method.score_weight * matching), metrics

      return players.move(config, tx, loss, state, batch, key_student)

    def fake_move(state):
      made = generate(state["student"], batch)
      return fake_score.follow(config, fake_tx, fake, state, dict(batch, made=made), key_fake)

    return players.alternate(config, state, student_move, fake_move)

  return Method(init, step)
