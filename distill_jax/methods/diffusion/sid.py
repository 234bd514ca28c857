"""Score identity distillation: one step, no data, a gradient through both score networks.

  x = G(z),  x_t = x + sigma eps
  psi:  lambda(sigma) |f_psi(x_t) - x|^2
  G:    <f_phi - f_psi, (f_phi - x) - a (f_phi - f_psi)> / mean |x - f_phi|

with f_phi the teacher's and f_psi the fake score's denoised images. Guidance is one of LSG's modes:
the teacher's scale, the fake score's when it is read, and when it is trained. `adversarial` is
SiDA's: a head on the fake score's features tells data from samples.

Paper: Zhou et al., Score identity Distillation: Exponentially Fast Distillation of Pretrained
  Diffusion Models for One-Step Generation (arXiv:2404.04057), algorithm 1.
Paper: Zhou et al., Long and Short Guidance in Score identity Distillation for One-Step
  Text-to-Image Generation (arXiv:2406.01561).
Paper: Zhou et al., Adversarial Score identity Distillation: Rapidly Surpassing the Teacher in One
  Step (arXiv:2410.14919).
"""

import jax

from distill_jax import optim
from distill_jax.diffusion import fake_score, players
from distill_jax.diffusion import network as network_lib
from distill_jax.losses import adversarial, scores
from distill_jax.method import Method
from distill_jax.models import heads


def make(config) -> Method:
  names = ("student", "teacher", "fake")
  student, teacher, fake = (network_lib.make(config, name) for name in names)
  tx, fake_tx = optim.make(config.optim, config.steps), optim.make(config.fake_optim, config.steps)
  guidance, alpha, weight = config.method.guidance, config.method.alpha, config.method.adversarial

  def init(key, pretrained):
    key, fake_key = jax.random.split(key)
    guide = fake_score.init_with_head(config, fake, fake_key, pretrained)
    return players.start(config, key, pretrained, tx, fake=(guide, fake_tx))

  def step(state, frozen, batch, key):
    key_z, key_student, key_fake = jax.random.split(key, 3)
    z = jax.random.normal(key_z, batch["x"].shape)
    batch = dict(batch, z=z)

    def generate(params, batch):
      condition = players.label_of(student, batch)
      return network_lib.generate(student, params, batch["z"], config.sampler.sigmas[0], condition)

    def student_move(state):
      def loss(params, batch, key):
        x = generate(params, batch)
        x_t, sigma = players.noised(config, key, x)
        condition = players.label_of(student, batch)
        real = network_lib.guided_denoise(
          teacher, frozen["teacher"], x_t, sigma, condition, guidance.teacher
        )
        made, features = network_lib.denoise_with_features(
          fake, state["fake"]["score"], x_t, sigma, condition
        )
        if guidance.fake != 1:
          made = network_lib.guided_denoise(
            fake, state["fake"]["score"], x_t, sigma, condition, guidance.fake
          )
        value = players.mean(scores.sid(x, real, made, alpha=alpha))
        if weight:
          logits = heads.apply(state["fake"]["head"], features)
          value += weight * adversarial.logistic_real(logits)
        gap = players.mean((real - made) ** 2)
        return players.total(value), dict(score_gap=players.total(gap))

      return players.move(config, tx, loss, state, batch, key_student)

    def fake_move(state):
      made = dict(batch, made=generate(state["student"], batch))
      label_drop = config.method.label_drop if guidance.fake != 1 else 0.0
      return fake_score.follow_with_head(
        *(config, fake_tx, fake, state, made, key_fake),
        weight=1.0 if weight else 0.0,
        label_drop=label_drop,
      )

    return players.alternate(config, state, student_move, fake_move)

  return Method(init, step)
