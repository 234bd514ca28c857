"""DistiLLM's three sources of text and its schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from oracle import kl, loss_of, mean, setup

from distill_jax.methods.llm import distillm

PROMPT = 8


@pytest.fixture(scope="module")
def run():
  return setup("distillm", "steps=100", scale=3.0)


def at(run, step, phi):
  schedule = dict(run.state["schedule"], phi=jnp.float32(phi))
  return dict(run.state, step=jnp.int32(step), schedule=schedule)


def test_at_first_it_is_the_skewed_divergence_on_the_datas_continuations(run):
  log_q, log_p = run.pair(run.batch["tokens"])
  mixture = np.log(0.9 * np.exp(log_p) + 0.1 * np.exp(log_q))
  mask = np.asarray(run.batch["mask"]) & (np.arange(16) >= PROMPT - 1)
  state, metrics = run.step(run.state, run.frozen, run.batch, jax.random.key(3))
  assert loss_of(metrics) == pytest.approx(mean(kl(log_q, mixture), mask), rel=1e-4)
  assert int(state["replay"]["written"]) == 0
  assert metrics["on_policy"][0] == metrics["replayed"][0] == 0


def test_what_the_student_writes_is_kept_and_the_oldest_overwritten(run):
  state, written = at(run, 0, 1.0), []
  for t in range(3):  # a capacity of two batches
    state, metrics = run.step(state, run.frozen, run.batch, jax.random.key(t))
    assert metrics["on_policy"] == (1, 1)
    written.append(np.asarray(state["replay"]["tokens"]))
  np.testing.assert_array_equal(written[2][8:], written[1][8:])
  assert np.any(written[2][:8] != written[1][:8])
  np.testing.assert_array_equal(written[2][:8, :PROMPT], run.batch["tokens"][:, :PROMPT])
  assert int(state["replay"]["written"]) == 24


def test_in_the_end_the_buffer_is_used_again(run):
  state = at(run, 100, 1.0)  # phi (1 - step / steps) = 0, but while it is not full it is filled
  for expected in ("on_policy", "on_policy", "replayed", "replayed"):
    before = state["replay"]
    state, metrics = run.step(state, run.frozen, run.batch, jax.random.key(0))
    assert metrics[expected] == (1, 1)
  np.testing.assert_array_equal(state["replay"]["tokens"], before["tokens"])


def test_phi_rises_when_the_loss_on_the_data_does():
  method = ConfigDict(dict(interval=2, tolerance=0.1, rise=0.4))
  schedule = dict(phi=jnp.float32(0), best=jnp.float32(jnp.inf), total=jnp.zeros(2))
  seen = []
  for step, loss in enumerate((2.0, 2.0, 2.0, 2.05, 2.05, 9.0, 9.0, 9.0, 9.0, 9.6, 9.6)):
    pair = (jnp.float32(loss * 4), jnp.float32(4))
    schedule = distillm._adapt(method, schedule, pair, jnp.bool_(step != 5), jnp.int32(step))
    seen.append(round(float(schedule["phi"]), 1))
  # step 5 is none on the data; 2.05 is within the tolerance, 9 is not, 9.3 is again
  assert seen == [0, 0, 0, 0, 0, 0, 0.4, 0.4, 0.4, 0.4, 0.8]
