"""Distribution matching held by a regression on the teacher's own ODE, to one step.

  x = G(z, y),  x_t = x + sigma eps,  x* = the teacher's Heun sample from z and y
  grad G = (f_psi(x_t) - f_phi(x_t)) / mean |x - f_phi(x_t)| . dG  +  w grad mean (x - x*)^2
  psi:     lambda(sigma) |f_psi(x_t) - x|^2

f_phi is the teacher's and f_psi the fake score's denoised image, w 0.25. The regression keeps modes
that matching alone would drop. Here every z is solved for afresh in the generator's step, by
`pairs` Heun steps, and serves both terms; the paper stores pairs of noise and image before, and
its regression is of LPIPS, which is a network of its own: here it is the squared distance.

Paper: Yin et al., One-step Diffusion with Distribution Matching Distillation (arXiv:2311.18828).
"""

import functools

import jax

from distill_jax import optim
from distill_jax.diffusion import fake_score, players, samplers
from distill_jax.diffusion import network as network_lib
from distill_jax.diffusion.schedules import karras_sigmas
from distill_jax.losses import denoising, scores
from distill_jax.method import Method


def make(config) -> Method:
  names = ("student", "teacher", "fake")
  student, teacher, fake = (network_lib.make(config, name) for name in names)
  tx, fake_tx = optim.make(config.optim, config.steps), optim.make(config.fake_optim, config.steps)
  method, sigma_max = config.method, config.sampler.sigmas[0]

  def init(key, pretrained):
    return players.start(config, key, pretrained, tx, fake=(None, fake_tx))

  def solve(params, z, condition):
    """The end of the teacher's probability-flow ODE."""

    def denoise(x, sigma):
      return network_lib.guided_denoise(teacher, params, x, sigma, condition, method.guidance)

    levels = karras_sigmas(method.pairs, config.noise.sigma_min, sigma_max)
    return samplers.heun(denoise, sigma_max * z, levels)

  def step(state, frozen, batch, key):
    key_z, key_student, key_fake = jax.random.split(key, 3)
    batch = dict(batch, z=jax.random.normal(key_z, batch["x"].shape))

    def generate(params, batch):
      condition = players.label_of(student, batch)
      return network_lib.generate(student, params, batch["z"], sigma_max, condition)

    def student_move(state):
      def loss(params, batch, key):
        x, condition = generate(params, batch), players.label_of(student, batch)
        x_t, sigma = players.noised(config, key, x)
        read = functools.partial(network_lib.guided_denoise, x=x_t, sigma=sigma)
        real = read(teacher, frozen["teacher"], condition=condition, scale=method.guidance)
        made = read(fake, state["fake"], condition=condition, scale=1)
        value = scores.distribution_matching(x, *jax.lax.stop_gradient((real, made)), epsilon=1e-6)
        end = jax.lax.stop_gradient(solve(frozen["teacher"], batch["z"], condition))
        error = players.mean(denoising.squared_error(x, end))
        gap = players.mean((real - made) ** 2)
        metrics = dict(score_gap=players.total(gap), regression=players.total(error))
        return players.total(players.mean(value) + method.regression * error), metrics

      return players.move(config, tx, loss, state, batch, key_student)

    def fake_move(state):
      made = generate(state["student"], batch)
      return fake_score.follow(config, fake_tx, fake, state, dict(batch, made=made), key_fake)

    return players.alternate(config, state, student_move, fake_move)

  return Method(init, step)
