"""Progressive distillation: one step of the student does what two of the teacher do.

  x_t = x0 + sigma_t eps,   x_s = two DDIM steps of the teacher from x_t
  loss = w |f(x_t, t) - x~|^2,   x~ the x0 with which one DDIM step from x_t ends at x_s

The student takes N steps on a grid of noise levels: even in sigma^(1/7) ("karras"), or in the angle
of the variance-preserving process ("cosine"); the last goes to the data. The run is cut into equal
stages from `first` steps down to `last`, N halved each time. Where a stage ends the student becomes
the teacher, which therefore is in the state, and the optimiser starts anew, its rate falling within
each stage. The first teacher is the network that the student begins as, also where `models.teacher`
is an exact denoiser. x / alpha is what steps, so that one code has both processes: DDIM's step is
the same in any alpha.

A student that hears of guidance begins as the result of guidance.py (`pretrained.start`), and is
told a scale drawn from [guidance.low, guidance.high], as is its teacher.

Paper: Salimans and Ho, Progressive Distillation for Fast Sampling of Diffusion Models
  (arXiv:2202.00512), algorithm 2.
Paper: Meng et al., On Distillation of Guided Diffusion Models (arXiv:2210.03142), stage two.
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.diffusion import network as network_lib
from distill_jax.diffusion import players, schedules, times
from distill_jax.losses import trajectories
from distill_jax.method import Method


def make(config) -> Method:
  student, method = network_lib.make(config, "student"), config.method
  stages = method.first.bit_length() - method.last.bit_length() + 1
  if method.first != method.last << stages - 1:
    raise ValueError(f"method.first, {method.first}, is not {method.last} times a power of 2")
  tx = optim.make(config.optim, config.steps // stages)

  def stage(step):
    return jnp.clip(step * stages // config.steps, 0, stages - 1)

  def init(key, pretrained):
    state, frozen = players.start(config, key, pretrained, tx, teacher=False)
    return dict(state, teacher=jax.tree.map(jnp.copy, state["student"])), frozen

  def step(state, frozen, batch, key):
    now = stage(state["step"])
    ends = now != stage(state["step"] - 1)
    pairs = (state["student"], tx.init(state["student"])), (state["teacher"], state["opt"])
    teacher, opt = jax.tree.map(lambda new, old: jnp.where(ends, new, old), *pairs)
    state = dict(state, teacher=teacher, opt=opt)

    def loss(params, batch, key):
      key_time, key_noise, key_scale = jax.random.split(key, 3)
      x0, condition = batch["x"], players.label_of(student, batch)
      if "guidance" in config.models.student.conditions:
        scale = times.guidance(method.guidance, key_scale, len(x0))
        condition = dict(condition, guidance=scale)
      n = method.first >> now
      i = jax.random.randint(key_time, (len(x0),), 1, n + 1)
      t, middle, end = (level(config, (i - part) / n) for part in (0, 0.5, 1))
      end = jnp.where(i == 1, 0, end)
      one = jnp.ones_like(t)
      x = trajectories.noised(x0, jax.random.normal(key_noise, x0.shape), (one, t))

      x_s = x
      for a, b in ((t, middle), (middle, end)):
        denoised = network_lib.denoise(student, teacher, x_s, a, condition)
        x_s = trajectories.ddim_step(x_s, denoised, (one, a), (one, b))
      target = trajectories.inverse_ddim(x, x_s, (one, t), (one, end))
      online = network_lib.denoise(student, params, x, t, condition)
      value = trajectories.progressive(online, target, -2 * jnp.log(t), weight=method.weight)
      return players.total(value), {}

    state, metrics = players.move(config, tx, loss, state, batch, key)
    metrics["student_steps"] = (jnp.float32(method.first >> now), jnp.float32(1))
    return dict(state, step=state["step"] + 1), metrics

  return Method(init, step)


def level(config, u: jax.Array) -> jax.Array:
  """The noise level sigma / alpha at u in [0, 1] of the grid; u = 1 is sigma_max."""
  low, high = config.noise.sigma_min, config.noise.sigma_max
  match config.method.schedule:
    case "karras":
      return schedules.karras_sigma(1 - u, low, high)
    case "cosine":
      return jnp.tan(jnp.arctan(low) * (1 - u) + jnp.arctan(high) * u)
  raise ValueError(f"method.schedule is karras or cosine, not {config.method.schedule!r}")
