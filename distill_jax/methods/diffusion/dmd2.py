"""Distribution matching of a few-step generator, by any f-divergence, with a GAN on the fake score.

  x = G(z),  x_t = x + sigma eps
  grad G   = h(r) (f_psi(x_t) - f_phi(x_t)) / mean |x - f_phi(x_t)| . dG   +  b grad of -log D(x_t)
  psi, D:    lambda(sigma) |f_psi(x_t) - x|^2  +  c (-log D(data_t) - log(1 - D(x_t)))

f_phi is the teacher's and f_psi the fake score's denoised image. The fake score moves `ratio` times
for each move of the generator (two time scales). D is a head on the fake score's features, at
noised images. With several levels in `sigmas` the generator trains at a random step of its own
sampling. With `divergence` other than reverse_kl the gradient is weighted by h(r), r = exp(logit of
D) the density ratio of data and samples, divided by its mean over the batch: f-distill.

Paper: Yin et al., Improved Distribution Matching Distillation for Fast Image Synthesis
  (arXiv:2405.14867), section 4.
Paper: Xu et al., One-step Diffusion Models with f-Divergence Distribution Matching
  (arXiv:2502.15681).
"""

import jax

from distill_jax import optim
from distill_jax.diffusion import fake_score, few_step, players
from distill_jax.diffusion import network as network_lib
from distill_jax.losses import adversarial, f_divergence, scores
from distill_jax.method import Method
from distill_jax.models import heads


def make(config) -> Method:
  names = ("student", "teacher", "fake")
  student, teacher, fake = (network_lib.make(config, name) for name in names)
  tx, fake_tx = optim.make(config.optim, config.steps), optim.make(config.fake_optim, config.steps)
  method, needs_ratio = config.method, config.method.divergence != "reverse_kl"
  if needs_ratio and not method.discriminator:
    raise ValueError(f"method.divergence {method.divergence!r} needs method.discriminator > 0")

  def init(key, pretrained):
    key, fake_key = jax.random.split(key)
    guide = fake_score.init_with_head(config, fake, fake_key, pretrained)
    return players.start(config, key, pretrained, tx, fake=(guide, fake_tx))

  def step(state, frozen, batch, key):
    key_start, key_student, key_fake = jax.random.split(key, 3)
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
        x = generate(params, batch)
        x_t, sigma = players.noised(config, key, x)
        condition, guide = players.label_of(student, batch), state["fake"]
        real = network_lib.guided_denoise(
          teacher, frozen["teacher"], x_t, sigma, condition, method.guidance
        )
        made, features = network_lib.denoise_with_features(
          fake, guide["score"], x_t, sigma, condition
        )
        logits = heads.apply(guide["head"], features)
        weight: jax.Array | float = 1.0
        if needs_ratio:
          ratio = f_divergence.density_ratio(logits[:, None])
          weight = f_divergence.batch_normalize(
            f_divergence.weight(ratio, divergence=method.divergence)
          )
        value = scores.distribution_matching(
          x, *jax.lax.stop_gradient((real, made)), weight=weight, epsilon=1e-6
        )
        value = players.mean(value) + method.adversarial * adversarial.logistic_real(logits)
        gap = players.mean((real - made) ** 2)
        return players.total(value), dict(score_gap=players.total(gap))

      return players.move(config, tx, loss, state, batch, key_student)

    def fake_move(state):
      made = dict(batch, made=generate(state["student"], batch))
      return fake_score.follow_with_head(
        config, fake_tx, fake, state, made, key_fake, weight=method.discriminator
      )

    return players.alternate(config, state, student_move, fake_move)

  return Method(init, step)
