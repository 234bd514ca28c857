"""Score distillation of a one-step generator without data and without a normaliser.

  x = G(z, y),  x_t = x + sigma eps,  y drawn uniformly
  grad G = w(sigma) (f_psi(x_t) - f_phi(x_t)) . dG
  psi:     lambda(sigma) |f_psi(x_t) - x|^2

f_phi is the teacher's and f_psi the fake score's denoised image; in expectation over sigma this is
the gradient of an integral of KL(generated || teacher) over the noise levels. w = 1 is the code of
Diff-Instruct. With `weight` another name of `losses.scores.noise_weight` the gradient is that of
variational score distillation, w (eps_phi - eps_psi) with (alpha, sigma) of the variance-preserving
process at the same signal-to-noise ratio: SwiftBrush, guided in the teacher or, with
`guidance.both`, in both networks (as its code). With guidance.low < guidance.high each example has
its own scale, drawn uniformly: SNOOPI's random guidance. Its negative prompts are not here.

Paper: Luo et al., Diff-Instruct: A Universal Approach for Transferring Knowledge From Pre-trained
  Diffusion Models (arXiv:2305.18455), algorithm 1.
Paper: Nguyen and Tran, SwiftBrush: One-Step Text-to-Image Diffusion Model with Variational Score
  Distillation (arXiv:2312.05239).
Paper: Nguyen et al., SNOOPI: Supercharged One-step Diffusion Distillation with Proper Guidance
  (arXiv:2412.02687).
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.diffusion import fake_score, players
from distill_jax.diffusion import network as network_lib
from distill_jax.losses import scores
from distill_jax.losses.denoising import expand
from distill_jax.method import Method


def make(config) -> Method:
  names = ("student", "teacher", "fake")
  student, teacher, fake = (network_lib.make(config, name) for name in names)
  tx, fake_tx = optim.make(config.optim, config.steps), optim.make(config.fake_optim, config.steps)
  guidance = config.method.guidance

  def init(key, pretrained):
    return players.start(config, key, pretrained, tx, fake=(None, fake_tx))

  def step(state, frozen, batch, key):
    key_z, key_label, key_student, key_fake = jax.random.split(key, 4)
    z = jax.random.normal(key_z, batch["x"].shape)
    batch = dict(z=z, **players.random_labels(student, key_label, len(z)))

    def generate(params, batch):
      condition = players.label_of(student, batch)
      return network_lib.generate(student, params, batch["z"], config.sampler.sigmas[0], condition)

    def student_move(state):
      def loss(params, batch, key):
        key_noise, key_scale = jax.random.split(key)
        x, condition = generate(params, batch), players.label_of(student, batch)
        x_t, sigma = players.noised(config, key_noise, x)
        scale = draw_scale(guidance, key_scale, len(x))
        real, made = (
          jax.lax.stop_gradient(
            network_lib.guided_denoise(network, params, x_t, sigma, condition, scale)
          )
          for network, params, scale in (
            (teacher, frozen["teacher"], scale),
            (fake, state["fake"], scale if guidance.both else 1),
          )
        )
        value = players.mean(score_loss(config.method.weight, x, x_t, sigma, real, made))
        gap = players.mean((real - made) ** 2)
        return players.total(value), dict(score_gap=players.total(gap))

      return players.move(config, tx, loss, state, batch, key_student)

    def fake_move(state):
      made = generate(state["student"], batch)
      drop = config.method.label_drop if guidance.both else 0.0
      return fake_score.follow(
        config, fake_tx, fake, state, dict(batch, made=made), key_fake, label_drop=drop
      )

    return players.alternate(config, state, student_move, fake_move)

  return Method(init, step)


def draw_scale(guidance, key: jax.Array, n: int) -> float | jax.Array:
  """The number, or [n] scales uniform in [low, high]."""
  if guidance.low == guidance.high:
    return guidance.low
  return jax.random.uniform(key, (n,), minval=guidance.low, maxval=guidance.high)


def score_loss(
  weight: str, x: jax.Array, x_t: jax.Array, sigma: jax.Array, real: jax.Array, fake: jax.Array
) -> jax.Array:
  """`scores.diff_instruct` for the weight "x0", else `scores.noise_difference`: elementwise.

  Args:
    weight: "x0", or a name of `scores.noise_weight`.
    x, x_t, real, fake: [B, ...], x_t = x + sigma eps and two denoised images of it.
    sigma: [B].
  """
  if weight == "x0":
    return scores.diff_instruct(x, real, fake)
  alpha = jax.lax.rsqrt(1 + jnp.square(sigma))  # of the variance-preserving process
  w = scores.noise_weight(alpha, alpha * sigma, name=weight)
  of_real, of_fake = ((x_t - x0) / expand(sigma, x) for x0 in (real, fake))
  return scores.noise_difference(x, of_real, of_fake, weight=w)
