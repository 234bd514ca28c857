"""TAID's first steps against numpy."""

import jax
import numpy as np
import pytest
from oracle import kl, loss_of, mean, setup


def test_the_loss_is_kl_to_the_interpolated_target_and_t_moves_as_the_loss_falls():
  run = setup("taid", "method.rate=0.5", "steps=100", "optim.lr=0.01")
  log_q, log_p = run.pair(run.batch["tokens"])
  mixed = 0.6 * log_q + 0.4 * log_p
  mixed -= np.log(np.exp(mixed).sum(-1, keepdims=True))
  expected = mean(kl(mixed, log_q), run.batch["mask"])
  state, metrics = run.step(run.state, run.frozen, run.batch, jax.random.key(3))
  assert loss_of(metrics) == pytest.approx(expected, rel=1e-4)
  assert float(state["taid"].t) == pytest.approx(0.4)  # the first loss is only remembered
  state, after = run.step(state, run.frozen, run.batch, jax.random.key(3))
  change = (loss_of(metrics) - loss_of(after)) / loss_of(metrics)
  moved = 0.4 + 0.5 / (1 + np.exp(-0.01 * change)) * 0.6
  assert float(state["taid"].t) == pytest.approx(moved, rel=1e-5)
  assert 0.4 + 0.6 / 100 < moved < 1


def test_t_is_never_behind_the_straight_line():
  run = setup("taid", "steps=4", "optim.lr=0.01")
  state = run.state
  for t in range(4):
    state, metrics = run.step(state, run.frozen, run.batch, jax.random.key(t))
    line = 0.4 + 0.6 * t / 4
    assert float(state["taid"].t) >= line - 1e-6
  assert float(metrics["taid_t"][0]) > 0.6
