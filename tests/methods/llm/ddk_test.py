"""Which domain a row is drawn from, and the loss on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax.models import student as student_lib

B, N, T = 8, 3, 16


@functools.cache
def program():
  config = config_lib.load(
    "experiments/llm/ddk.py:smoke",
    ("data.domains=3", "method.interval=3", "method.held_rows=2", "method.gamma=0.3"),
  )
  method = method_lib.load("methods", config.method.name).make(config)
  state, frozen = jax.jit(lambda key: method.init(key, {}))(jax.random.key(0))
  state["student"] = jax.tree.map(lambda x: 3 * x, state["student"])
  model = student_lib.model(config, "student")  # the teacher has its shape
  logits = jax.jit(lambda params, x: model.logits(params, model.hidden(params, x)))

  def log_probs(params, tokens):
    x = np.array(logits(params, tokens[:, :-1]), np.float64)[..., :257]
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))

  return jax.jit(method.step), state, frozen, log_probs


def batch_of():
  """Rows whose first token is their domain."""
  tokens = jax.random.randint(jax.random.key(1), (B, N, T + 1), 0, 256)
  tokens = tokens.at[:, :, 0].set(jnp.arange(N))
  return dict(tokens=tokens, mask=jax.random.bernoulli(jax.random.key(2), 0.7, (B, N, T)))


def ratios(state, frozen, log_probs):
  found = []
  for tokens in np.asarray(frozen["held_out"]):
    losses = []
    for params in (state["student"], frozen["teacher"]):
      picked = np.take_along_axis(log_probs(params, tokens), tokens[:, 1:, None], -1)
      losses.append(-picked.mean())
    found.append(np.exp(losses[0]) / np.exp(losses[1]))
  return np.array(found)


def drawn(metrics):
  return np.array([metrics[f"domain_{i}"][0] for i in range(N)])


def test_the_first_interval_draws_by_size_and_the_second_by_discrepancy():
  step, state, frozen, log_probs = program()
  expected = np.exp(ratios(state, frozen, log_probs))
  expected /= expected.sum()  # eq. 1
  weights = []
  for t in range(4):
    last = state
    state, metrics = step(state, frozen, batch_of(), jax.random.key(t))
    weights.append(drawn(metrics))
    if t < 3:
      np.testing.assert_allclose(state["discrepancy"], expected, rtol=1e-4)
  for t in range(3):
    np.testing.assert_array_equal(weights[t], frozen["shares"])
  psi = expected * np.exp(ratios(last, frozen, log_probs))
  expected = 0.5 * psi / psi.sum() + 0.5 / N  # eq. 2
  np.testing.assert_allclose(state["discrepancy"], expected, rtol=1e-4)
  np.testing.assert_array_equal(weights[3], state["discrepancy"])
  assert abs(weights[3] - weights[2]).max() > 0.01


def test_perplexities_beyond_all_bounds_are_alike_and_finite():
  step, state, frozen, _ = program()
  far = dict(state, student=jax.tree.map(lambda x: 30 * x, state["student"]), step=jnp.int32(3))
  new, metrics = step(far, frozen, batch_of(), jax.random.key(0))
  assert np.isfinite(new["discrepancy"]).all() and metrics["skipped"][0] == 0
  np.testing.assert_allclose(new["discrepancy"], 1 / N, rtol=1e-5)


@pytest.mark.parametrize("domain", range(N))
def test_the_loss_is_cross_entropy_and_a_divergence_on_the_rows_drawn(domain):
  step, state, frozen, log_probs = program()
  only = dict(frozen, shares=jnp.eye(N)[domain])
  batch = batch_of()
  _, metrics = step(dict(state, step=jnp.int32(1)), only, batch, jax.random.key(0))
  tokens, mask = (np.asarray(batch[k][:, domain]) for k in ("tokens", "mask"))
  q, p = (log_probs(x, tokens) for x in (state["student"], frozen["teacher"]))
  nats = -np.take_along_axis(q, tokens[:, 1:, None], -1)[..., 0]
  total = (mask * (nats + 0.3 * (np.exp(p) * (p - q)).sum(-1))).sum()
  np.testing.assert_allclose(metrics["loss"], (total, mask.sum()), rtol=1e-4)


def test_rows_are_drawn_as_often_as_the_weights_say():
  """By the loss: it is linear in which rows are drawn."""
  step, state, frozen, _ = program()
  state = dict(state, step=jnp.int32(1))
  batch = dict(batch_of(), mask=jnp.zeros((B, N, T), bool))
  batch["mask"] = batch["mask"].at[:, 0, :3].set(True).at[:, 1, :1].set(True)
  mixed = dict(frozen, shares=jnp.array([0.6, 0.3, 0.1]))
  counts = [step(state, mixed, batch, jax.random.key(i))[1]["loss"][1] for i in range(100)]
  np.testing.assert_allclose(np.mean(counts), B * (0.6 * 3 + 0.3 * 1), rtol=0.08)
  assert len(set(map(float, counts))) > 5
