"""DistiLLM-2's first two losses against numpy, on greedy text."""

import jax
import numpy as np
import pytest
from oracle import kl, loss_of, nll, setup

PROMPT = 8


def losses(run, state_step, gaps):
  """The loss in numpy, and the gaps that the step leaves."""
  prompts = run.batch["tokens"][:, :PROMPT]
  b, total, left = 1 + 0.5 * min(1, 2 * state_step / run.config.steps), 0.0, []
  for i, (name, params) in enumerate(
    (("teacher", run.frozen["teacher"]), ("student", run.state["student"]))
  ):
    text = run.greedy(name, params, prompts, 17 - PROMPT)
    log_q, log_p = (x[:, PROMPT - 1 :] for x in run.pair(text))
    full_q, full_p = run.pair(text)
    q, p = (np.exp(-nll(x, text)[:, PROMPT - 1 :].mean(1)) for x in (full_q, full_p))
    gap = p - q if i == 0 else q - p
    left.append(gap.mean())
    skew = np.full(8, 0.1) if gaps is None else np.clip(1 - 0.9 * gaps[i] / (gap + 1e-5), 0.01, 0.1)
    a = skew[:, None, None]
    if i == 0:
      value = kl(log_p, np.log(a * np.exp(log_p) + (1 - a) * np.exp(log_q)))
    else:
      value = kl(log_q, np.log((1 - a) * np.exp(log_p) + a * np.exp(log_q)))
    total += (2 - b if i == 0 else b) * value.mean(1).mean()
  return total, left


def test_both_losses_with_their_skews_and_weights():
  run = setup("distillm2", "method.temperature=0.0", "steps=4", "optim.lr=0.05", scale=3.0)
  state, metrics = run.step(run.state, run.frozen, run.batch, jax.random.key(3))
  expected, gaps = losses(run, 0, None)
  assert loss_of(metrics) == pytest.approx(expected, rel=1e-3)
  np.testing.assert_allclose(state["gaps"], gaps, rtol=1e-3)
  second = run._replace(state=state)
  _, metrics = run.step(state, run.frozen, run.batch, jax.random.key(4))
  assert loss_of(metrics) == pytest.approx(losses(second, 1, gaps)[0], rel=1e-3)
