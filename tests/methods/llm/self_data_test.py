"""The text as the teacher puts it after it has read the true one, against a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import loss_of, nll, setup

PROMPT = 8


def test_the_teacher_reads_the_text_and_the_student_only_the_prompt():
  run = setup("self_data", scale=3.0)
  tokens = run.batch["tokens"]
  shown = jnp.concatenate([tokens, tokens[:, :PROMPT]], axis=1)
  written = run.greedy("teacher", run.frozen["teacher"], shown, 17 - PROMPT)[:, 17:]
  np.testing.assert_array_equal(written[:, :PROMPT], tokens[:, :PROMPT])
  log_q, _ = run.pair(jnp.asarray(written))
  _, metrics = run.step(run.state, run.frozen, run.batch, jax.random.key(3))
  assert loss_of(metrics) == pytest.approx(nll(log_q, written)[:, PROMPT - 1 :].mean(), rel=1e-4)
  blind = run.greedy("teacher", run.frozen["teacher"], tokens[:, :PROMPT], 17 - PROMPT)
  assert np.any(blind != written)
