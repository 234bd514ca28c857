"""Consistency models on pairs of noise levels: distilled from a teacher, or trained on data alone.

  x_t = x0 + t eps
  x_s = one step of the teacher's ODE from x_t (distillation), or x0 + s eps (training)
  loss = w(t, s) d(f(x_t, t), sg f_target(x_s, s)),   t > s

`times` says which pairs. "grid": neighbours of a Karras grid of N levels, drawn evenly; N grows
from `scales` to `scales_end`, and the target is an average of the student (CD and CT). "ict":
neighbours drawn by a discretised log-normal, N doubling; "ect": t log-normal and s = r(t), which
comes closer in stages. The last two have the student itself as target, and pseudo-Huber distances
over t - s. f is the EDM denoiser of the network, which is the identity at noise 0.

Paper: Song, Dhariwal, Chen, Sutskever, Consistency Models (arXiv:2303.01469), algorithms 2 and 3.
Paper: Song and Dhariwal, Improved Techniques for Training Consistency Models (arXiv:2310.14189).
Paper: Geng et al., Consistency Models Made Easy (arXiv:2406.14548).
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.diffusion import discretization, players, times
from distill_jax.diffusion import network as network_lib
from distill_jax.losses import consistency
from distill_jax.losses.denoising import expand
from distill_jax.method import Method


def make(config) -> Method:
  student, teacher = (network_lib.make(config, name) for name in ("student", "teacher"))
  method = config.method
  tx = optim.make(config.optim, config.steps)
  pairs = dict(grid=_grid, ict=_ict, ect=_ect)[method.times]
  distilled = method.solver != "data"
  if method.solver not in ("heun", "euler", "data"):
    raise ValueError(f"method.solver is heun, euler or data, not {method.solver!r}")

  def init(key, pretrained):
    state, frozen = players.start(config, key, pretrained, tx, teacher=distilled)
    if method.target_decay:
      state["target"] = jax.tree.map(jnp.copy, state["student"])
    return state, frozen

  def backwards(frozen, x0, x_t, t, s, condition):
    """One step of an ODE from level t to s: the teacher's, or the one that goes through x0."""

    def denoised(x, sigma):
      return network_lib.guided_denoise(
        teacher, frozen["teacher"], x, sigma, condition, method.guidance
      )

    if not distilled:
      return consistency.euler_step(x_t, x0, t, s)
    first = denoised(x_t, t)
    euler = consistency.euler_step(x_t, first, t, s)
    if method.solver == "euler":
      return euler
    return consistency.heun_step(x_t, first, euler, denoised(euler, s), t, s)

  def step(state, frozen, batch, key):
    def loss(params, batch, key):
      key_pair, key_noise, key_drop = jax.random.split(key, 3)
      x0 = batch["x"]
      condition = players.label_of(student, batch)
      condition = players.drop(student, condition, key_drop, method.label_drop)
      t, s = pairs(config, key_pair, state["step"], len(x0))
      x_t = x0 + expand(t, x0) * jax.random.normal(key_noise, x0.shape)
      x_s = jax.lax.stop_gradient(backwards(frozen, x0, x_t, t, s, condition))
      online = network_lib.denoise(student, params, x_t, t, condition)
      target = network_lib.denoise(student, state.get("target", params), x_s, s, condition)
      if method.times == "grid":
        weight = discretization.cm_weight(t, method.weight, sigma_data=student.sigma_data)
        value = consistency.consistency(online, target, weight=weight)
      elif method.times == "ict":
        value = consistency.ict(online, target, t, s)
      else:
        target = consistency.clean_at_zero(target, x0, s)
        value = consistency.ect(online, target, t, s, c=method.huber)
      return players.total(value), {}

    new, metrics = players.move(config, tx, loss, state, batch, key)
    if method.target_decay:
      decay = _target_decay(config, state["step"])
      new["target"] = jax.tree.map(
        lambda old, x: decay * old + (1 - decay) * x, state["target"], new["student"]
      )
    return dict(new, step=state["step"] + 1), metrics

  return Method(init, step)


def _scales(config, step: jax.Array) -> jax.Array:
  method = config.method
  if method.scales == method.scales_end:
    return jnp.int32(method.scales)
  grow = discretization.ict_scales if method.times == "ict" else discretization.cm_scales
  scales = grow(step, steps=config.steps, start=method.scales, end=method.scales_end)
  return scales.astype(jnp.int32)


def _target_decay(config, step: jax.Array) -> jax.Array | float:
  method = config.method
  if method.scales == method.scales_end:
    return method.target_decay
  return discretization.cm_target_ema(
    _scales(config, step), start=method.scales, start_ema=method.target_decay
  )


def _levels(config, step: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The number of levels now, and the levels, ascending, filled up to the largest number."""
  noise, n = config.noise, _scales(config, step)
  size = config.method.scales_end + 1
  return n, discretization.ascending_sigmas(
    n, size, sigma_min=noise.sigma_min, sigma_max=noise.sigma_max
  )


def _grid(config, key: jax.Array, step: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  n, sigmas = _levels(config, step)
  i = jax.random.randint(key, (count,), 0, n - 1)
  return sigmas[i + 1], sigmas[i]


def _ict(config, key: jax.Array, step: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  _, sigmas = _levels(config, step)
  noise = config.noise
  mass = discretization.ict_probabilities(sigmas, mean=noise.mean, std=noise.std)
  i = jax.random.categorical(key, jnp.log(mass), shape=(count,))
  return sigmas[i + 1], sigmas[i]


def _ect(config, key: jax.Array, step: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  t = times.draw(config.noise, key, count)
  stage = step * config.method.stages // config.steps
  gap = discretization.ect_gap(stage, q=config.method.q, smallest=0.001)
  return t, discretization.ect_r(t, gap)
