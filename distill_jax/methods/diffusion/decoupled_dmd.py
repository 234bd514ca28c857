"""Distribution matching with guidance, its two parts at noise levels of their own.

  x = G(z)
  matching:      f_psi(x_t) - f_phi(x_t, y)                   sigma over the whole range
  augmentation:  -(scale - 1) (f_phi(x_s, y) - f_phi(x_s))    below the generator's own level
  grad G = (matching + augmentation) . dG
  psi:     lambda(sigma) |f_psi(x_t) - x|^2

f_phi is the teacher's and f_psi the fake score's denoised image. At one level the sum is the
gradient of DMD with a guided teacher, without its normaliser. The augmentation's level is uniform
in t = sigma / (1 + sigma) from the cleanest to that of the step that the generator takes.

Paper: Liu et al., Decoupled DMD (arXiv:2511.22677).
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.diffusion import fake_score, few_step, players
from distill_jax.diffusion import network as network_lib
from distill_jax.losses import scores
from distill_jax.losses.denoising import expand
from distill_jax.method import Method


def make(config) -> Method:
  names = ("student", "teacher", "fake")
  student, teacher, fake = (network_lib.make(config, name) for name in names)
  tx, fake_tx = optim.make(config.optim, config.steps), optim.make(config.fake_optim, config.steps)
  method = config.method

  def init(key, pretrained):
    return players.start(config, key, pretrained, tx, fake=(None, fake_tx))

  def step(state, frozen, batch, key):
    key_start, key_student, key_fake = jax.random.split(key, 3)
    x, sigma = few_step.simulate(
      student,
      state["student"],
      key_start,
      len(batch["x"]),
      method.sigmas,
      players.label_of(student, batch),
    )
    batch = dict(batch, start=x, start_sigma=sigma)

    def generate(params, batch):
      condition = players.label_of(student, batch)
      return network_lib.denoise(student, params, batch["start"], batch["start_sigma"], condition)

    def student_move(state):
      def loss(params, batch, key):
        key_matching, key_level, key_noise = jax.random.split(key, 3)
        x, condition = generate(params, batch), players.label_of(student, batch)
        x_t, sigma = players.noised(config, key_matching, x)
        real = network_lib.denoise(teacher, frozen["teacher"], x_t, sigma, condition)
        made = network_lib.denoise(fake, state["fake"], x_t, sigma, condition)
        value = scores.distribution_matching(
          x, *jax.lax.stop_gradient((real, made)), normalize=False
        )
        sigma = cleaner(key_level, batch["start_sigma"], config.noise.sigma_min)
        x_s = x + expand(sigma, x) * jax.random.normal(key_noise, x.shape)
        guided, free = (
          jax.lax.stop_gradient(
            network_lib.denoise(teacher, frozen["teacher"], x_s, sigma, condition)
          )
          for condition in (condition, network_lib.null_condition(teacher, condition))
        )
        value += scores.guidance_augmentation(x, guided, free, scale=method.guidance)
        gap = players.mean((real - made) ** 2)
        return players.total(players.mean(value)), dict(score_gap=players.total(gap))

      return players.move(config, tx, loss, state, batch, key_student)

    def fake_move(state):
      made = generate(state["student"], batch)
      return fake_score.follow(config, fake_tx, fake, state, dict(batch, made=made), key_fake)

    return players.alternate(config, state, student_move, fake_move)

  return Method(init, step)


def cleaner(key: jax.Array, sigma: jax.Array, sigma_min: float) -> jax.Array:
  """Levels [B] uniform in t = sigma / (1 + sigma) between sigma_min and each of sigma [B]."""
  low, high = sigma_min / (1 + sigma_min), sigma / (1 + sigma)
  t = low + (high - low) * jax.random.uniform(key, sigma.shape)
  return jnp.minimum(t / (1 - t), sigma)
