"""Multistep consistency models: consistency within each of a few segments of the trajectory.

  x_t at a random time of a segment that ends at e,   s = t - 1 / T
  x_s = one step of the teacher from x_t: DDIM, or aDDIM at eta > 0
  x_e = one DDIM step from x_s to e with sg f(x_s, s)
  loss = w |f(x_t, t) - x~|^2,   x~ the x0 with which one DDIM step from x_t ends at x_e

The schedule is the variance-preserving cosine's between the noise levels of config.noise. T, the
number of the teacher's steps, grows from `first` to `last` geometrically and is a multiple of
`segments`; with as many segments as steps this is diffusion distillation, with one a consistency
model. w = 1 + SNR, the squared error of v. A student of m segments samples by m steps of DDIM.

Paper: Heek, Hoogeboom, Salimans, Multistep Consistency Models (arXiv:2403.06807), algorithm 1.
"""

import math

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.diffusion import network as network_lib
from distill_jax.diffusion import players, schedules
from distill_jax.losses import trajectories
from distill_jax.method import Method


def make(config) -> Method:
  student, teacher = (network_lib.make(config, name) for name in ("student", "teacher"))
  tx = optim.make(config.optim, config.steps)
  method, noise = config.method, config.noise
  vp = schedules.vp_cosine(-2 * math.log(noise.sigma_max), -2 * math.log(noise.sigma_min))

  def init(key, pretrained):
    return players.start(config, key, pretrained, tx)

  def step(state, frozen, batch, key):
    def loss(params, batch, key):
      key_time, key_noise = jax.random.split(key)
      x0, condition = batch["x"], players.label_of(student, batch)
      t, s, end = draw_times(config, key_time, state["step"], len(x0))
      now, then, last = ((vp.alpha(u), vp.sigma(u)) for u in (t, s, end))
      x_t = trajectories.noised(x0, jax.random.normal(key_noise, x0.shape), now)

      def clean(network, params, x, u):
        return network_lib.predict(network, params, x, u, vp, "x0", condition)

      of_teacher = clean(teacher, frozen["teacher"], x_t, t)
      x_s = trajectories.addim_step(x_t, of_teacher, now, then, eta=method.eta)
      x_end = trajectories.ddim_step(x_s, clean(student, params, x_s, s), then, last)
      target = trajectories.inverse_ddim(x_t, x_end, now, last)
      value = trajectories.progressive(
        clean(student, params, x_t, t),
        target,
        schedules.log_snr(vp, t),
        weight="snr_plus_one",
      )
      return players.total(value), {}

    state, metrics = players.move(config, tx, loss, state, batch, key)
    return dict(state, step=state["step"] + 1), metrics

  return Method(init, step)


def draw_times(
  config, key: jax.Array, step: jax.Array, count: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """t, s = t - 1 / T and the end of their segment, [count] each, in [0, 1]; 0 is the data."""
  method = config.method
  grown = method.first * (method.last / method.first) ** (step / config.steps)
  within = jnp.round(grown / method.segments)  # steps of the teacher in a segment
  key_segment, key_step = jax.random.split(key)
  end = jax.random.randint(key_segment, (count,), 0, method.segments) / method.segments
  i = 1 + jnp.floor(jax.random.uniform(key_step, (count,)) * within)
  width = 1 / (within * method.segments)
  return end + i * width, end + (i - 1) * width, end
