"""BOOT: a student of pure noise, y(eps, s), learns the teacher's signal-ODE by bootstrapping.

  y(eps, t) is the image that x_t of the ODE from eps shows where its noise is eps:
  x_t = alpha_t y + sigma_t eps,   y_s = (1 - k) f(x_t, t) + k y_t,   k = exp((l_t - l_s) / 2)
  loss = mean (y(eps, s) - sg y_s)^2  +  boundary mean (y(eps, T) - f(eps, T))^2

l is the log-SNR, t noisier than s. y(eps, 0) is the sample. No data are used. The paper's student
has eps as image and s as the network's time; ours has them at the time T, and is told s as the
second time: begun as the teacher it then meets the boundary condition from the start. The sampler
is a jump from sigma_max to 0 (`flow_map`). The schedule is the variance-preserving cosine's between
the noise levels of config.noise, t on a grid of `levels`. The paper's weights are left out.

Paper: Gu et al., BOOT: Data-free Distillation of Denoising Diffusion Models with Bootstrapping
  (arXiv:2306.05544).
"""

import math

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.diffusion import network as network_lib
from distill_jax.diffusion import players, schedules
from distill_jax.losses import consistency, trajectories
from distill_jax.method import Method


def make(config) -> Method:
  student, teacher = (network_lib.make(config, name) for name in ("student", "teacher"))
  tx = optim.make(config.optim, config.steps)
  method, noise = config.method, config.noise
  vp = schedules.vp_cosine(-2 * math.log(noise.sigma_max), -2 * math.log(noise.sigma_min))

  def init(key, pretrained):
    return players.start(config, key, pretrained, tx)

  def signal(params, eps, s, condition):
    """y(eps, s): the student's image of noise at sigma_max, told that it shall be that of s."""
    second = jnp.arctan2(vp.sigma(s), vp.alpha(s) * student.sigma_data)
    return network_lib.generate(
      student, params, eps, noise.sigma_max, dict(condition, second=second)
    )

  def step(state, frozen, batch, key):
    def loss(params, batch, key):
      key_eps, key_label, key_time = jax.random.split(key, 3)
      eps = jax.random.normal(key_eps, batch["x"].shape)
      condition = players.random_labels(student, key_label, len(eps))
      i = jax.random.randint(key_time, (len(eps),), 1, method.levels + 1)
      t, s = i / method.levels, (i - 1) / method.levels
      log_t, log_s = (schedules.log_snr(vp, u) for u in (t, s))

      y = jax.lax.stop_gradient(signal(params, eps, t, condition))
      x_t = trajectories.boot_input(y, eps, log_t)
      denoised = network_lib.predict(teacher, frozen["teacher"], x_t, t, vp, "x0", condition)
      target = trajectories.boot_target(y, denoised, log_t, log_s)
      value = consistency.mean_squared(signal(params, eps, s, condition), target)

      first = network_lib.generate(teacher, frozen["teacher"], eps, noise.sigma_max, condition)
      edge = consistency.mean_squared(signal(params, eps, jnp.ones_like(t), condition), first)
      metrics = dict(boundary=players.total(edge))
      return players.total(value + method.boundary * edge), metrics

    state, metrics = players.move(config, tx, loss, state, batch, key)
    return dict(state, step=state["step"] + 1), metrics

  return Method(init, step)
