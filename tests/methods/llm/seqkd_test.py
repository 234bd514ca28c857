"""What the teacher writes, and the student's loss on it, against a loop over whole sequences."""

import jax
import pytest
from oracle import loss_of, mean, nll, setup

PROMPT = 8  # of the smoke config, in rows of 17 tokens


def test_the_loss_is_that_of_the_teachers_greedy_continuation():
  run = setup("seqkd", scale=3.0)
  prompts = run.batch["tokens"][:, :PROMPT]
  written = run.greedy("teacher", run.frozen["teacher"], prompts, 17 - PROMPT)
  log_q, _ = run.pair(written)
  expected = mean(nll(log_q, written)[:, PROMPT - 1 :], run.batch["mask"][:, : 17 - PROMPT] | True)
  _, metrics = run.step(run.state, run.frozen, run.batch, jax.random.key(3))
  assert metrics["loss"][1] == 8 * (17 - PROMPT)
  assert loss_of(metrics) == pytest.approx(expected, rel=1e-4)
