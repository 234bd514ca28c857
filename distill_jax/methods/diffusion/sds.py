"""Particles that a diffusion model pulls into its distribution: the student is the points or images
themselves, config.batch_size of them.

  x_t = x + sigma eps
  grad x = w(sigma) (eps_phi(x_t, y) - other)

  kind  other
  sds   eps, the noise that was drawn: particles fall onto modes
  vsd   eps_psi(x_t, y), a network that learns the particles' own distribution
  esd   entropy eps_psi(x_t) + (1 - entropy) eps_psi(x_t, y): the particles also keep apart
  asd   eps_psi(x_t, y) of a network that is trained as an adversary,
        |eps_psi - eps|^2 + gamma |eps_psi - eps_phi|^2

w is a name of `losses.scores.noise_weight`, of the variance-preserving process at the same
signal-to-noise ratio. Particle i has the label i mod the number of classes, which takes the place
of a text's camera in ESD. The papers have a renderer between particles and images, and a low-rank
adapter of the teacher as psi; here psi is a whole network.

Paper: Poole et al., DreamFusion: Text-to-3D using 2D Diffusion (arXiv:2209.14988), eq. 3.
Paper: Wang et al., ProlificDreamer: High-Fidelity and Diverse Text-to-3D Generation with
  Variational Score Distillation (arXiv:2305.16213).
Paper: Wang et al., Taming Mode Collapse in Score Distillation for Text-to-3D Generation
  (arXiv:2401.00909).
Paper: Wei et al., Adversarial Score Distillation: When score distillation meets GAN
  (arXiv:2312.00739).
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.diffusion import fake_score, players, times
from distill_jax.diffusion import network as network_lib
from distill_jax.losses import scores
from distill_jax.losses.denoising import expand
from distill_jax.method import Method

KINDS = ("sds", "vsd", "esd", "asd")


def make(config) -> Method:
  teacher, fake = (network_lib.make(config, name) for name in ("teacher", "fake"))
  tx, fake_tx = optim.make(config.optim, config.steps), optim.make(config.fake_optim, config.steps)
  method = config.method
  if method.kind not in KINDS:
    raise ValueError(f"method.kind: no {method.kind!r}, only {', '.join(KINDS)}")
  if config.microbatches != 1:
    raise ValueError("microbatches: particles all move at once")

  def init(key, pretrained):
    key_x, key_fake, key_teacher = jax.random.split(key, 3)
    n = config.batch_size
    x = method.spread * teacher.sigma_data * jax.random.normal(key_x, (n, *teacher.shape))
    state = dict(step=jnp.int32(0), student=x, opt=tx.init(x), ema=optim.ema_init(config.ema, x))
    state["label"] = jnp.arange(n, dtype=jnp.int32) % max(teacher.num_classes, 1)
    if method.kind != "sds":
      params = network_lib.params(config, "fake", key_fake, pretrained)
      state |= dict(fake=params, fake_opt=fake_tx.init(params))
    return state, dict(teacher=network_lib.params(config, "teacher", key_teacher, pretrained))

  def step(state, frozen, batch, key):
    key_student, key_fake = jax.random.split(key)
    batch = dict(label=state["label"])
    condition = players.label_of(teacher, batch)

    def noise_of(network, params, x_t, sigma, condition, scale=1.0):
      x0 = network_lib.guided_denoise(network, params, x_t, sigma, condition, scale)
      return (x_t - x0) / expand(sigma, x_t)

    def draw(key, x):
      key_sigma, key_noise = jax.random.split(key)
      sigma = times.draw(config.noise, key_sigma, len(x))
      noise = jax.random.normal(key_noise, x.shape)
      return x + expand(sigma, x) * noise, sigma, noise

    def student_move(state):
      def loss(x, batch, key):
        x_t, sigma, noise = jax.lax.stop_gradient(draw(key, x))
        real = noise_of(teacher, frozen["teacher"], x_t, sigma, condition, method.guidance)
        other = (
          noise if method.kind == "sds" else noise_of(fake, state["fake"], x_t, sigma, condition)
        )
        if method.kind == "esd":
          null = network_lib.null_condition(fake, condition)
          marginal = noise_of(fake, state["fake"], x_t, sigma, null)
          other = scores.entropic(other, marginal, entropy=method.entropy)
        alpha = jax.lax.rsqrt(1 + jnp.square(sigma))
        weight = scores.noise_weight(alpha, alpha * sigma, name=method.weight)
        value = players.mean(scores.noise_difference(x, real, other, weight=weight))
        gap = players.mean((real - other) ** 2)
        return players.total(value), dict(score_gap=players.total(gap))

      return players.move(config, tx, loss, state, batch, key_student)

    def fake_move(state):
      made = state["student"]
      if method.kind != "asd":
        drop = method.label_drop if method.kind == "esd" else 0.0
        return fake_score.follow(
          config, fake_tx, fake, state, dict(batch, made=made), key_fake, label_drop=drop
        )

      def loss(params, batch, key):
        x_t, sigma, noise = draw(key, made)
        real = noise_of(teacher, frozen["teacher"], x_t, sigma, condition, method.guidance)
        mine = noise_of(fake, params, x_t, sigma, condition)
        error = scores.adversarial_score(mine, noise, real, gamma=method.gamma)
        return players.total(players.mean(error)), {}

      return players.move(config, fake_tx, loss, state, batch, key_fake, "fake")

    if method.kind == "sds":
      state, metrics = student_move(state)
      return dict(state, step=state["step"] + 1), metrics
    return players.alternate(config, state, student_move, fake_move)

  return Method(init, step)
