"""Latent consistency distillation; with several segments, phased or trajectory-segmented.

  x_t = x0 + t eps,   x_s = one DDIM step of the guided teacher from x_t to the next of n levels
  e the end of t's segment:   jump(f, x, t) = f + e / t (x - f),  f = f(x, t, y, scale)
  loss = d(jump(f, x_t, t), sg jump(f_target, x_s, s)),   d a Huber loss of each number

With one segment e = 0 and the jump is f itself. The scale of guidance is drawn uniformly from
[guidance.low, guidance.high] and told to the student; the target is an average of the student of
decay `target_decay`, or the student itself at 0 (PCM). The levels are Karras' and not LCM's 50 of
1000 timesteps. The denoiser in EDM's form is the identity at noise 0. A student of m segments
samples by m steps of DDIM between their ends. Hyper-SD halves the number of segments in stages,
each a run of its own, and adds a discriminator, as does PCM; that is not here.

Paper: Luo et al., Latent Consistency Models: Synthesizing High-Resolution Images with Few-Step
  Inference (arXiv:2310.04378).
Paper: Ren et al., Hyper-SD: Trajectory Segmented Consistency Model for Efficient Image Synthesis
  (arXiv:2404.13686).
Paper: Wang et al., Phased Consistency Models (arXiv:2405.18407).
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.diffusion import discretization, players, times
from distill_jax.diffusion import ema as ema_lib
from distill_jax.diffusion import network as network_lib
from distill_jax.losses import consistency, trajectories
from distill_jax.method import Method


def make(config) -> Method:
  student, teacher = (network_lib.make(config, name) for name in ("student", "teacher"))
  tx = optim.make(config.optim, config.steps)
  method, noise = config.method, config.noise

  def init(key, pretrained):
    state, frozen = players.start(config, key, pretrained, tx)
    if method.target_decay:
      state["target"] = jax.tree.map(jnp.copy, state["student"])
    return state, frozen

  def jump(params, x, sigma, end, condition):
    """x at the end of its segment, as far as a network knows."""
    x0 = network_lib.denoise(student, params, x, sigma, condition)
    level = jnp.maximum(sigma, noise.sigma_min)  # not 0
    return trajectories.ddim_step(x, x0, (jnp.ones_like(end), level), (jnp.ones_like(end), end))

  def step(state, frozen, batch, key):
    def loss(params, batch, key):
      key_time, key_noise, key_scale = jax.random.split(key, 3)
      x0, condition = batch["x"], players.label_of(student, batch)
      scale = times.guidance(method.guidance, key_scale, len(x0))
      i = jax.random.randint(key_time, (len(x0),), 0, method.levels)
      t, s, end, at_edge = _levels(config, i)
      one = jnp.ones_like(t)
      x_t = trajectories.noised(x0, jax.random.normal(key_noise, x0.shape), (one, t))
      denoised = network_lib.guided_denoise(teacher, frozen["teacher"], x_t, t, condition, scale)
      x_s = trajectories.ddim_step(x_t, denoised, (one, t), (one, s))
      told = dict(condition, guidance=scale)
      jumped = jump(state.get("target", params), x_s, s, end, told)
      target = trajectories.segment_target(x_s, jumped, at_edge)
      value = consistency.consistency(
        jump(params, x_t, t, end, told), target, distance=consistency.mean_pseudo_huber
      )
      return players.total(value), {}

    new, metrics = players.move(config, tx, loss, state, batch, key)
    if method.target_decay:
      new["target"] = ema_lib.ema_step(state["target"], new["student"], 1 - method.target_decay)
    return dict(new, step=state["step"] + 1), metrics

  return Method(init, step)


def _levels(config, i: jax.Array) -> tuple[jax.Array, ...]:
  """Of pair i the noise levels t and s, the end of their segment, and whether s is that end."""
  n = config.method.levels
  sigmas = discretization.ascending_sigmas(
    n, n, sigma_min=config.noise.sigma_min, sigma_max=config.noise.sigma_max
  )
  sigmas = jnp.pad(sigmas, (1, 0))
  edge = discretization.phase_edge(i, discretization.phase_edges(n, config.method.segments))
  return sigmas[i + 1], sigmas[i], sigmas[edge], edge == i
