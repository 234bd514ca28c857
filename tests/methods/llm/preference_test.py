"""Losses of pairs against their definitions in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax.config import ConfigError
from distill_jax.models import student as student_lib

B, T = 4, 12


@functools.cache
def program(*overrides):
  """The compiled step, state, frozen and the logits of a model."""
  config = config_lib.load("experiments/llm/preference.py:smoke", overrides)
  method = method_lib.load("methods", config.method.name).make(config)
  state, frozen = jax.jit(lambda key: method.init(key, {}))(jax.random.key(0))
  model = student_lib.model(config, "student")  # the teacher has its shape
  logits = jax.jit(lambda params, x: model.logits(params, model.hidden(params, x)))
  return jax.jit(method.step), state, frozen, logits


def batch_of(mask=None):
  tokens = jax.random.randint(jax.random.key(1), (B, 2, T + 1), 0, 256)
  random = jax.random.bernoulli(jax.random.key(2), 0.6, (B, 2, T))
  return dict(tokens=tokens, mask=random if mask is None else mask)


def one_step(*overrides, batch=None, moved=0.0, at=0):
  """log q and log p of all ids [B, 2, T, V], the batch and the metrics; the student starts `moved`
  from its first weights."""
  step, state, frozen, logits = program(*overrides)
  student = jax.tree.map(
    lambda x: x + moved * jnp.sin(jnp.arange(x.size)).reshape(x.shape), state["student"]
  )
  state = dict(state, student=student, step=jnp.int32(at))
  batch = batch_of() if batch is None else batch
  _, metrics = step(state, frozen, batch, jax.random.key(3))
  other = frozen.get("teacher", frozen.get("reference"))
  log_probs = []
  for params in (student, other):
    if params is not None:
      inputs = batch["tokens"].reshape(-1, T + 1)[:, :-1]
      x = np.array(logits(params, inputs), np.float64)[..., :257]
      log_probs.append((x - np.log(np.exp(x).sum(-1, keepdims=True))).reshape(-1, 2, T, 257))
  metrics = {k: (float(a), float(b)) for k, (a, b) in metrics.items()}
  return log_probs, jax.device_get(batch), metrics


def picked(log_probs, batch):
  """Log-probabilities of the targets that count [B, 2, T], and how many these are [B, 2]."""
  values = np.take_along_axis(log_probs, batch["tokens"][..., 1:, None], -1)[..., 0]
  return values * batch["mask"], batch["mask"].sum(-1)


def log_sigmoid(x):
  return -np.log1p(np.exp(-x))


SUMS = ("method.average=False", "method.beta=0.3", "method.sft=0.5")


@pytest.mark.parametrize("reference", ["teacher", "student", "none"])
def test_dpo_is_the_odds_of_the_chosen_answer(reference):
  overrides = (f"method.reference={reference}", *SUMS)
  log_probs, batch, metrics = one_step(*overrides, moved=0.05)
  own, count = picked(log_probs[0], batch)
  ratio = own.sum(-1)
  if reference != "none":
    ratio = ratio - picked(log_probs[1], batch)[0].sum(-1)
  margin = ratio[:, 0] - ratio[:, 1]
  chosen = own[:, 0].sum(-1) / count[:, 0]
  expected = -log_sigmoid(0.3 * margin) - 0.5 * chosen
  np.testing.assert_allclose(metrics["loss"], (expected.sum(), B), rtol=1e-4)
  np.testing.assert_allclose(metrics["margin"], (margin.sum(), B), rtol=1e-3, atol=1e-4)
  assert metrics["accuracy"] == ((margin > 0).sum(), B)
  np.testing.assert_allclose(metrics["chosen_log_prob"], (chosen.sum(), B), rtol=1e-4)


def test_a_student_that_is_its_own_reference_starts_at_log_2_and_keeps_it_frozen():
  overrides = ("method.reference=student", *SUMS)
  log_probs, _, metrics = one_step(*overrides)
  np.testing.assert_array_equal(*log_probs)
  chosen = metrics["chosen_log_prob"][0]
  np.testing.assert_allclose(metrics["loss"][0] + 0.5 * chosen, B * np.log(2), rtol=1e-5)
  assert "teacher" not in program(*overrides)[2]


def test_means_of_log_ratios_feed_ipo():
  log_probs, batch, metrics = one_step(
    "method.loss=ipo", "method.average=True", "method.sft=0.0", "method.beta=0.2"
  )
  means = [x.sum(-1) / n for x, n in (picked(p, batch) for p in log_probs)]
  ratio = means[0] - means[1]
  expected = (ratio[:, 0] - ratio[:, 1] - 1 / (2 * 0.2)) ** 2
  np.testing.assert_allclose(metrics["loss"], (expected.sum(), B), rtol=1e-4)


DCKD = ("method.loss=dckd", "method.alpha=0.7")


def test_dckd_is_cross_entropy_and_a_divergence_on_both_answers():
  log_probs, batch, metrics = one_step(*DCKD)
  q, p = log_probs
  kl = (np.exp(p) * (p - q)).sum(-1) * batch["mask"]
  kl = (kl.sum(-1) / batch["mask"].sum(-1)).sum(-1)
  own, count = picked(q, batch)
  expected = 0.7 * kl - own[:, 0].sum(-1) / count[:, 0]
  np.testing.assert_allclose(metrics["loss"], (expected.sum(), B), rtol=1e-4)


def test_an_answer_without_tokens_counts_nothing():
  mask = batch_of()["mask"].at[0].set(False).at[1, 1].set(False)
  log_probs, batch, metrics = one_step(*DCKD, batch=batch_of(mask))
  q, p = log_probs
  kl = (np.exp(p) * (p - q)).sum(-1) * batch["mask"]
  own, count = picked(q, batch)
  count = np.maximum(count, 1)
  expected = 0.7 * (kl.sum(-1) / count).sum(-1) - own[:, 0].sum(-1) / count[:, 0]
  assert expected[0] == 0 and metrics["skipped"][0] == 0
  np.testing.assert_allclose(metrics["loss"], (expected.sum(), B), rtol=1e-4)


@pytest.mark.parametrize("at, weight", [(2, 0.0), (3, 0.8)])
def test_redi_pushes_rejected_answers_down_in_its_second_stage(at, weight):
  log_probs, batch, metrics = one_step(
    "method.loss=redi", "method.sft_steps=3", "method.sft=0.0", at=at
  )
  own, count = picked(log_probs[0], batch)
  mean = own.sum(-1) / count
  np.testing.assert_allclose(
    metrics["loss"], ((weight * mean[:, 1] - mean[:, 0]).sum(), B), rtol=1e-4
  )


def test_names_that_do_not_exist_are_refused():
  with pytest.raises(ConfigError, match=r"No method.loss 'dpoo'. Did you mean 'dpo'"):
    program("method.loss=dpoo")
  with pytest.raises(ConfigError, match=r"No method.reference 'techer'. Did you mean 'teacher'"):
    program("method.reference=techer")
