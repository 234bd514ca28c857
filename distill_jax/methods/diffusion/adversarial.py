"""A generator trained by a discriminator on a diffusion network's frozen features of noised images.

  x = G(z, y),  x_t = x + sigma eps,  D(x_t) = head(features of the frozen network at x_t, sigma, y)
  D:  real(D(data_t)) + fake(D(x_t)) + r1 (D(data_t) - D(data_t + d eps))^2 / d^2
  G:  generator(D(x_t)) + distillation |x - f_phi(x_t)|^2

real, fake and generator are the hinge or the logistic losses. The frozen network has the weights
that the student starts from, and one head on the features of its middle; the papers have heads on
many layers. Data and samples share labels. `distillation` is ADD's second term, with the teacher's
f_phi not differentiated. Where `freeze` matches the path of a parameter of the generator it stays
what it was: a diffusion model with most of its weights frozen is a one-step generator after a GAN
alone has moved the others.

Paper: Sauer et al., Adversarial Diffusion Distillation (arXiv:2311.17042).
Paper: Sauer et al., Fast High-Resolution Image Synthesis with Latent Adversarial Diffusion
  Distillation (arXiv:2403.12015).
Paper: Zheng and Yang, Revisiting Diffusion Models: From Generative Pre-training to One-Step
  Generation (arXiv:2506.09376).
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from distill_jax import optim
from distill_jax.diffusion import network as network_lib
from distill_jax.diffusion import players
from distill_jax.losses import adversarial, denoising
from distill_jax.method import Method
from distill_jax.models import heads

LOSSES = dict(
  hinge=(adversarial.hinge_real, adversarial.hinge_fake, adversarial.hinge_generator),
  logistic=(adversarial.logistic_real, adversarial.logistic_fake, adversarial.logistic_real),
)


def make(config) -> Method:
  names = ("student", "teacher", "fake")
  student, teacher, critic = (network_lib.make(config, name) for name in names)
  method = config.method
  tx = partly(optim.make(config.optim, config.steps), method.freeze)
  head_tx = optim.make(config.fake_optim, config.steps)
  if method.loss not in LOSSES:
    raise ValueError(f"method.loss: no {method.loss!r}, only {', '.join(LOSSES)}")
  of_real, of_fake, of_generator = LOSSES[method.loss]

  def init(key, pretrained):
    key, key_head, key_critic = jax.random.split(key, 3)
    head = heads.init(key_head, network_lib.feature_width(critic))
    state, frozen = players.start(config, key, pretrained, tx, discriminator=(head, head_tx))
    return state, dict(frozen, critic=network_lib.params(config, "fake", key_critic, pretrained))

  def step(state, frozen, batch, key):
    key_z, key_student, key_head = jax.random.split(key, 3)
    batch = dict(batch, z=jax.random.normal(key_z, batch["x"].shape))

    def generate(params, batch):
      condition = players.label_of(student, batch)
      return network_lib.generate(student, params, batch["z"], config.sampler.sigmas[0], condition)

    def logits(head, x_t, sigma, batch):
      condition = players.label_of(critic, batch)
      _, features = network_lib.denoise_with_features(
        critic, frozen["critic"], x_t, sigma, condition
      )
      return heads.apply(head, features)

    def student_move(state):
      def loss(params, batch, key):
        x = generate(params, batch)
        x_t, sigma = players.noised(config, key, x)
        value = of_generator(logits(state["discriminator"], x_t, sigma, batch))
        if method.distillation:
          condition = players.label_of(teacher, batch)
          real = network_lib.denoise(teacher, frozen["teacher"], x_t, sigma, condition)
          error = denoising.squared_error(x, jax.lax.stop_gradient(real))
          value += method.distillation * players.mean(error)
        return players.total(value), {}

      return players.move(config, tx, loss, state, batch, key_student)

    def head_move(state):
      made = jax.lax.stop_gradient(generate(state["student"], batch))

      def loss(head, batch, key):
        key_made, key_real, key_near = jax.random.split(key, 3)
        on_made = logits(head, *players.noised(config, key_made, batch["made"]), batch)
        x_t, sigma = players.noised(config, key_real, batch["x"])
        on_real = logits(head, x_t, sigma, batch)
        value = of_real(on_real) + of_fake(on_made)
        if method.r1:
          near = x_t + method.r1_distance * jax.random.normal(key_near, x_t.shape)
          penalty = adversarial.perturbation_penalty(on_real, logits(head, near, sigma, batch))
          value += method.r1 * penalty / method.r1_distance**2
        gap = jnp.sum(on_real - on_made), jnp.float32(len(on_real))
        return players.total(value), dict(logit_gap=gap)

      found = dict(batch, made=made)
      return players.move(config, head_tx, loss, state, found, key_head, "discriminator")

    return players.alternate(config, state, student_move, head_move)

  return Method(init, step)


def partly(tx: optax.GradientTransformation, freeze: str) -> optax.GradientTransformation:
  """The optimiser on parameters whose path the regular expression does not match; "" frees all."""
  if not freeze:
    return tx

  def sides(params: Any):
    def side(path, _):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      return "frozen" if re.search(freeze, name) else "free"

    return jax.tree_util.tree_map_with_path(side, params)

  return optax.multi_transform(dict(free=tx, frozen=optax.set_to_zero()), sides)
