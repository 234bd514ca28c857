"""Losses between tokenizers against loops over chunks and ids in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax.config import ConfigError
from distill_jax.data import two_tokenizers
from distill_jax.models import student as student_lib

NONE = 48  # the number of tokens that belong to no chunk


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  folder = tmp_path_factory.mktemp("texts")
  for name in ("0.txt", "1.txt"):
    (folder / name).write_text(f"def {name[0]}(self):\n    return [value for value in self]\n" * 20)
  return folder


@functools.cache
def program(source, overrides):
  """Config, compiled step, state, frozen, batch and float64 log-probabilities [B, T, V] of both
  models."""
  config = config_lib.load(
    "experiments/llm/cross_tokenizer.py:smoke",
    (f"data.source={source}", f"cache_dir={source}/cache", "batch_size=2", *overrides),
  )
  data = two_tokenizers.align(config, "train")
  batch = jax.tree.map(lambda *x: jnp.stack(x), data.example(1), data.example(7))
  method = method_lib.load("methods", config.method.name).make(config)
  state, frozen = jax.jit(lambda key: method.init(key, {}))(jax.random.key(0))
  state["student"], frozen["teacher"] = jax.tree.map(  # far from uniform
    lambda x: 4 * x, (state["student"], frozen["teacher"])
  )
  log_probs = []
  for name, params, tokens in (
    ("student", state["student"], batch["tokens"]),
    ("teacher", frozen["teacher"], batch["teacher_tokens"]),
  ):
    model = student_lib.model(config, name)
    logits = jax.jit(lambda p, x, m=model: m.logits(p, m.hidden(p, x)))(params, tokens[:, :-1])
    logits = np.array(logits, np.float64)[..., : model.vocabulary]
    logits -= logits.max(-1, keepdims=True)
    log_probs.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
  return jax.jit(method.step), state, frozen, batch, log_probs


def one_step(source, *overrides, change=lambda batch: batch):
  """Log-probabilities, the batch, the method's metrics and what the losses know of the
  vocabularies."""
  step, state, frozen, batch, log_probs = program(source, overrides)
  batch = change(batch)
  _, metrics = step(state, frozen, batch, jax.random.key(3))
  metrics = {k: (float(a), float(b)) for k, (a, b) in metrics.items()}
  return [x.copy() for x in log_probs], jax.device_get(batch), metrics, frozen["tokens"]


def check(metrics, batch, log_probs, total, chunks, weight):
  nats = -np.take_along_axis(log_probs[0], batch["tokens"][:, 1:, None], -1)[..., 0]
  nats = (nats * batch["mask"]).sum()
  np.testing.assert_allclose(metrics["cross_entropy"], (nats, batch["mask"].sum()), rtol=1e-4)
  np.testing.assert_allclose(metrics["chunk_loss"], (total, chunks), rtol=1e-3)
  np.testing.assert_allclose(
    metrics["loss"], (nats + weight * total, batch["mask"].sum()), rtol=1e-3
  )


def likelihoods(log_probs, batch, starts, threshold):
  """(student, teacher) log-likelihoods of the chunks of all rows."""
  found = []
  for row in range(len(batch["tokens"])):
    sides = []
    for side, prefix in enumerate(("", "teacher_")):
      ids, numbers = batch[f"{prefix}tokens"][row], batch[f"{prefix}chunks"][row]
      mass = np.log((np.exp(log_probs[side][row]) * starts[side]).sum(-1))
      chunks = []  # log-likelihood and what follows, of each chunk
      for c in range(numbers[numbers < NONE].max() + 1):
        at = np.flatnonzero(numbers == c)
        inside = sum(log_probs[side][row, t, ids[t + 1]] for t in at)
        chunks.append((inside, mass[at[-1] + 1] if at[-1] + 1 < len(mass) else None))
      sides.append(chunks)
    joined = [0.0, 0.0]
    for student, teacher in zip(*sides, strict=True):
      joined = [joined[0] + student[0], joined[1] + teacher[0]]
      if student is sides[0][-1]:
        break  # nothing follows the last
      if teacher[1] >= np.log(threshold):
        found.append((joined[0] + student[1], joined[1] + teacher[1]))
        joined = [0.0, 0.0]
  return found


THRESHOLD = "method.threshold=0.32"


def test_alm_compares_the_likelihoods_of_joined_chunks(source):
  threshold = 0.32  # which random models reach after some chunks
  log_probs, batch, metrics, starts = one_step(source, THRESHOLD)
  pairs = likelihoods(log_probs, batch, starts, threshold)
  total = 0.0
  for s, t in pairs:
    s, t = s / 100 - 1e-6, t / 100 - 1e-6
    total -= np.exp(t) * s + (1 - np.exp(t)) * np.log(1 - np.exp(s))
  check(metrics, batch, log_probs, total, len(pairs), 100.0)
  alone = likelihoods(log_probs, batch, starts, 1e-30)
  assert 2 < len(pairs) < len(alone) - 2


def test_alm_without_boundaries_takes_every_chunk_but_the_last_as_it_is(source):
  log_probs, batch, metrics, _ = one_step(
    source, "method.boundary=False", "method.function=absolute_log", "method.weight=0.5"
  )
  total = count = 0
  for row in range(2):
    last = batch["chunks"][row][batch["mask"][row]].max()
    for c in range(last):
      sides = []
      for side, prefix in enumerate(("", "teacher_")):
        at = np.flatnonzero(batch[f"{prefix}chunks"][row] == c)
        sides.append(sum(log_probs[side][row, t, batch[f"{prefix}tokens"][row, t + 1]] for t in at))
      total, count = total + abs(sides[0] - sides[1]), count + 1
  check(metrics, batch, log_probs, total, count, 0.5)


ULD = ("method.loss=uld", "method.weight=1.5")
HYBRID = ("method.loss=hybrid_uld", "method.weight=1.5", "divergence.kind.beta=0.3")


@pytest.mark.parametrize("overrides", [ULD, HYBRID])
def test_uld_compares_sorted_probabilities_where_a_chunk_begins(source, overrides):
  log_probs, batch, metrics, shared = one_step(source, *overrides)
  total = count = 0
  for row in range(2):
    for c in range(batch["chunks"][row][batch["mask"][row]].max() + 1):
      q, p = (
        np.exp(log_probs[side][row, np.flatnonzero(batch[f"{prefix}chunks"][row] == c)[0]])
        for side, prefix in enumerate(("", "teacher_"))
      )
      matched, share = 0.0, 0.0
      if overrides == HYBRID:
        own, target = np.maximum(q[shared[0]], 1e-8), np.maximum(p[shared[1]], 1e-8)
        mix = 0.3 * target + 0.7 * own
        matched = np.sum(0.3 * target * np.log(target / mix) + 0.7 * own * np.log(own / mix))
        share = len(shared[0]) / len(p)
        q[shared[0]] = p[shared[1]] = 0
      width = max(len(q), len(p))
      q, p = (np.pad(np.sort(x)[::-1], (0, width - len(x))) for x in (q, p))
      total += share * matched + (1 - share) * np.abs(q - p).sum()
      count += 1
  check(metrics, batch, log_probs, total, count, 1.5)


@pytest.mark.parametrize("overrides", [(THRESHOLD,), ULD])
def test_a_row_without_chunks_counts_nothing(source, overrides):
  def empty(batch):
    nothing = dict(chunks=NONE, teacher_chunks=NONE, mask=False, teacher_mask=False)
    return dict(batch, **{k: jnp.full_like(batch[k], v) for k, v in nothing.items()})

  _, _, metrics, _ = one_step(source, *overrides, change=empty)
  assert metrics["chunk_loss"] == metrics["cross_entropy"] == (0, 0)
  assert metrics["loss"] == (0, 0) and metrics["grad_norm"][0] == 0 and metrics["skipped"][0] == 0


def test_names_that_do_not_exist_are_refused(source):
  with pytest.raises(ConfigError, match=r"No method.loss 'amd'. Did you mean"):
    one_step(source, "method.loss=amd")
  with pytest.raises(ConfigError, match=r"No method.function 'renyy'. Did you mean 'renyi'"):
    one_step(source, "method.function=renyy")
  with pytest.raises(ConfigError, match=r"data.name 'text' has no data.teacher_tokenizer"):
    one_step(source, "data.name=text")
