"""Exact networks on a Gaussian, where the optimum is known, with parameters that move off it.

Data are N(MEAN, STD^2 I). A network's parameters `gain` and `shift` are 1 and 0 at the answer that
it is built from, so the norm of their gradient at the start is that of the loss at the optimum.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax.diffusion import network as network_lib

MEAN, STD, SCALE = 0.7, 0.5, 0.8  # SCALE: the sigma_data that networks are told
EXACT = dict(gain=1.0, shift=0.0)


def network(answer, target="x0", params=None):
  """A network whose denoised image of x = x0 + sigma eps is answer(params, x, sigma, condition), or
  whose velocity of flow is answer(params, x_t, t, condition)."""

  def raw(params, x, angle, condition):
    sin, cos = jnp.maximum(jnp.sin(angle), 1e-6), jnp.maximum(jnp.cos(angle), 1e-6)
    if target == "x0":
      alpha, sigma = jnp.ones_like(angle), SCALE * sin / cos
      time = sigma
    else:
      time = SCALE * sin / (cos + SCALE * sin)
      alpha, sigma = 1 - time, time
    rates = (-jnp.ones_like(angle), jnp.ones_like(angle))
    on_x, on_f, scale = network_lib.coefficients(alpha, sigma, SCALE, target, rates)
    x = scale[:, None] * x
    given = params if "gain" in params else EXACT
    wanted = given["gain"] * answer(params, x, time[:, None], condition) + given["shift"]
    return (wanted - on_x[:, None] * x) / on_f[:, None], x[:, None]

  params = dict(gain=jnp.float32(1), shift=jnp.float32(0)) if params is None else params
  return network_lib.Network(lambda key: params, raw, (2,), SCALE, 0)


def denoiser(params, x, sigma, condition):
  return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)


def consistency(params, x, sigma, condition):
  """The end of the probability-flow ODE."""
  return MEAN + STD / jnp.sqrt(STD**2 + sigma**2) * (x - MEAN)


def average_velocity(params, x, t, condition):
  """(x_t - x_r) / (t - r) of the flow (1 - t) x0 + t eps, without a division by 0."""
  tan = jnp.tan(condition["second"])[:, None] * SCALE
  r = tan / (1 + tan)
  v_t, v_r = (((1 - u) * STD) ** 2 + u**2 for u in (t, r))
  rise = (t + r) - STD**2 * (2 - t - r)
  return -MEAN + rise / (v_t + jnp.sqrt(v_t * v_r)) * (x - (1 - t) * MEAN)


def steps_of_ddim(levels, ends):
  """What x - MEAN is multiplied by in the denoised image from which one DDIM step goes from
  levels[i] to levels[ends[i]], where all the steps between of the exact denoiser lead: float [N].

  levels are ascending; where ends[i] = i it is the exact denoiser's.
  """
  levels, gains = np.asarray(levels, np.float64), []
  for i, end in enumerate(ends):
    total = 1.0
    for j in range(i, end, -1):
      now, then = levels[j], levels[j - 1]
      total *= (STD**2 + now * then) / (STD**2 + now**2)
    ratio = levels[end] / levels[i] if end < i else 0.0
    exact = STD**2 / (STD**2 + levels[i] ** 2)
    gains.append((total - ratio) / (1 - ratio) if end < i else exact)
  return np.array(gains, np.float32)


def looked_up(levels, gains):
  """The denoiser with a gain for each level; any other level is taken as its neighbour."""
  levels, gains = jnp.asarray(levels, jnp.float32), jnp.asarray(gains)

  def answer(params, x, sigma, condition):
    return MEAN + gains[jnp.argmin(jnp.abs(sigma - levels), axis=1)][:, None] * (x - MEAN)

  return answer


def play(monkeypatch, experiment, overrides=(), state=None, steps=1, **networks):
  """One step of the smoke experiment (NAME or NAME:words) with the given networks.

  Returns:
    loss and grad_norm of the last step, its metrics, and the state after it.
  """
  name, _, words = experiment.partition(":")
  spec = f"experiments/diffusion/{name}.py:" + ",".join(["smoke", *filter(None, [words])])
  plain = ("optim.name=sgd", "fake_optim.name=sgd", "optim.lr=0.001", "optim.clip_norm=0.0")
  config = config_lib.load(spec, (*plain, "steps=100", *overrides))
  networks.setdefault("teacher", network(denoiser, params={}))
  monkeypatch.setattr(network_lib, "make", lambda _, name: networks[name])
  method = method_lib.load("methods", config.method.name).make(config)
  start, frozen = method.init(jax.random.key(0), {})
  start = dict(start, **(state or {}))
  x = MEAN + STD * jax.random.normal(jax.random.key(1), (512, 2))
  batch = dict(x=x, label=jnp.arange(512) % 5)
  step = jax.jit(method.step)
  for t in range(steps):
    start, metrics = step(start, frozen, batch, jax.random.key(2 + t))
  values = {k: float(total / count) for k, (total, count) in metrics.items()}
  return SimpleNamespace(
    loss=values["loss"], grad_norm=values["grad_norm"], metrics=values, state=start, config=config
  )


@pytest.fixture
def exact(monkeypatch):
  """The functions above; `play` is bound to the test."""

  def bound(*args, **kwargs):
    return play(monkeypatch, *args, **kwargs)

  return SimpleNamespace(
    play=bound,
    network=network,
    denoiser=denoiser,
    consistency=consistency,
    average_velocity=average_velocity,
    steps_of_ddim=steps_of_ddim,
    looked_up=looked_up,
    mean=MEAN,
    std=STD,
  )


@pytest.fixture
def forwards():
  """The arithmetic of a step on data, without a teacher, in forward passes of its student."""

  def count(experiment):
    wide = ("models.student.width=256", "models.student.depth=1", "method.solver=data", "ema=()")
    config = config_lib.load(f"experiments/diffusion/{experiment}.py:smoke", wide)
    method = method_lib.load("methods", config.method.name).make(config)
    student = network_lib.make(config, "student")
    state, frozen = method.init(jax.random.key(0), {})
    batch = dict(x=jnp.ones((512, 2)), label=jnp.zeros(512, jnp.int32))

    def forward(params, x, angle, condition):
      return student.raw(params, x, angle, condition)[0]  # without the features

    def flops(function, *args):
      return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]

    condition = dict(label=batch["label"], second=jnp.ones(512))
    one = flops(forward, state["student"], batch["x"], jnp.ones(512), condition)
    return flops(method.step, state, frozen, batch, jax.random.key(1)) / one

  return count
