"""Distribution matching by intervals of noise: one phase makes x_s of noise, the next x_0 of x_s.

  t = sigma / (1 + sigma), x_t = (1 - t) x_0 + t eps, the phases are t in [s, 1] and [0, s]
  phase 1:  x_s = (1 - s) G(noise) + s eps'      phase 2:  x_0 = G(x_s), x_s of phase 1
  x_t from x_s (or from x_0) with t in the phase's own interval
  grad G = (f_psi(x_t) - f_phi(x_t)) / mean |x - f_phi(x_t)| . dG,  x = G(.)
  psi:     w |v_psi(x_t) - target(x_s, eps, s, t)|^2, unbiased though x_0 is not known

Each phase matches its own interval alone, and the fake score learns an interval from where its
phase ends. w is clipped. Two simplifications of the paper, whose phases are experts trained one
after another: both phases are trained at once, an example drawing its own, and they share one
network, as the noise level tells them apart; so do their fake scores, whose intervals do not
overlap.

Paper: Fan et al., Phased DMD (arXiv:2510.27684).
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.diffusion import few_step, players, schedules
from distill_jax.diffusion import network as network_lib
from distill_jax.losses import denoising, scores
from distill_jax.losses.denoising import expand
from distill_jax.method import Method


def make(config) -> Method:
  names = ("student", "teacher", "fake")
  student, teacher, fake = (network_lib.make(config, name) for name in names)
  tx, fake_tx = optim.make(config.optim, config.steps), optim.make(config.fake_optim, config.steps)
  method, flow = config.method, schedules.flow()
  if len(method.sigmas) != 2:
    raise ValueError(f"method.sigmas: the levels where two phases begin, not {method.sigmas}")
  least, middle, most = (s / (1 + s) for s in (config.noise.sigma_min, *method.sigmas[::-1]))

  def init(key, pretrained):
    return players.start(config, key, pretrained, tx, fake=(None, fake_tx))

  def noised(x, first, key):
    """What a phase ends in, and its noised copy: s [B], x_s and Subinterval of it, and t [B]."""
    key_end, key_t, key_noise = jax.random.split(key, 3)
    s = jnp.where(first, middle, 0.0)
    x_s = schedules.noised(flow, x, jax.random.normal(key_end, x.shape), s)
    low, high = jnp.where(first, middle, least), jnp.where(first, most, middle)
    t = low + (high - low) * jax.random.uniform(key_t, s.shape, minval=method.margin)
    noise = jax.random.normal(key_noise, x.shape)
    return denoising.subinterval(x_s, noise, s, t), t

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
      x = network_lib.denoise(student, params, batch["start"], batch["start_sigma"], condition)
      return x, batch["start_sigma"] > method.sigmas[1]

    def student_move(state):
      def loss(params, batch, key):
        (x, first), condition = generate(params, batch), players.label_of(student, batch)
        made_of, t = noised(x, first, key)
        x_t, sigma = made_of.x_t / expand(1 - t, x), t / (1 - t)
        real = network_lib.guided_denoise(
          teacher, frozen["teacher"], x_t, sigma, condition, method.guidance
        )
        made = network_lib.denoise(fake, state["fake"], x_t, sigma, condition)
        value = scores.distribution_matching(x, *jax.lax.stop_gradient((real, made)), epsilon=1e-6)
        gap = players.mean((real - made) ** 2)
        return players.total(players.mean(value)), dict(score_gap=players.total(gap))

      return players.move(config, tx, loss, state, batch, key_student)

    def fake_move(state):
      made, first = jax.lax.stop_gradient(generate(state["student"], batch))

      def loss(params, batch, key):
        target, t = noised(batch["made"], batch["first"], key)
        condition = players.label_of(fake, batch)
        velocity = network_lib.predict(fake, params, target.x_t, t, flow, "flow", condition)
        weight = jnp.minimum(target.weight, method.weight_max)
        error = denoising.squared_error(velocity, target.flow, weight=weight)
        return players.total(players.mean(error)), {}

      found = dict(batch, made=made, first=first)
      return players.move(config, fake_tx, loss, state, found, key_fake, "fake")

    return players.alternate(config, state, student_move, fake_move)

  return Method(init, step)
