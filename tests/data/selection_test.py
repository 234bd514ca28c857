"""Rows that the teacher models better than the reference."""

import jax
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax.config import ConfigError
from distill_jax.data import selection, text
from distill_jax.models import student as student_lib


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  folder = tmp_path_factory.mktemp("texts")
  for name in ("0.txt", "1.txt", "58.txt"):
    (folder / name).write_text("".join(f"{name}: line {i} of many\n" for i in range(60)))
  overrides = (f"data.source={folder}", f"cache_dir={folder}/cache", "data.candidates=27")
  return config_lib.load("experiments/llm/miniplm.py:smoke", overrides)


@pytest.fixture(scope="module")
def scored(config):
  rows = selection.candidates(config)
  return rows, selection.scores(config, rows)


def test_the_score_is_the_difference_of_mean_losses(config, scored):
  rows, scores = scored
  assert rows.shape == (27, 17) and scores.shape == (27,)  # not a multiple of the batch of 8
  losses = {}
  for i, name in enumerate(("teacher", "reference")):
    model = student_lib.model(config, name)
    params = student_lib.params(config, name, jax.random.key(i), {})
    logits = jax.jit(lambda p, x, m=model: m.logits(p, m.hidden(p, x)))(params, rows[:, :-1])
    logits = np.array(logits, np.float64)
    logits = logits[..., :257]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_probs, rows[:, 1:, None].astype(int), -1)[..., 0]
    losses[name] = -picked.mean(-1)
  np.testing.assert_allclose(scores, losses["reference"] - losses["teacher"], atol=1e-5)
  assert scores.std() > 1e-4


def test_the_rows_with_the_highest_scores_are_trained_on_and_no_other(config, scored):
  rows, scores = scored
  best = {tuple(rows[i]) for i in np.argsort(-scores)[:13]}
  data = iter(selection.make(config))
  seen = {tuple(row) for _ in range(12) for row in next(data)["tokens"]}
  assert seen == best
  assert next(data)["mask"].all()


def test_scores_are_kept_and_know_rows_and_models(config, scored, monkeypatch):
  rows, scores = scored

  def refuse(*_):
    raise AssertionError("scored again")

  monkeypatch.setattr(selection, "losses", refuse)
  np.testing.assert_array_equal(selection.scores(config, rows), scores)
  for changed in (rows[1:], rows):
    other = config.copy_and_resolve_references()
    if changed is rows:
      other.models.reference.layers = 1
    with pytest.raises(AssertionError, match="scored again"):
      selection.scores(other, changed)


def test_several_processes_only_read_scores(config, scored, monkeypatch):
  rows, scores = scored
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  np.testing.assert_array_equal(selection.scores(config, rows), scores)
  with pytest.raises(ConfigError, match=r"python -m distill_jax.data.selection"):
    selection.scores(config, rows[1:])


def test_candidates_are_spread_over_the_training_text(config):
  everything = config.copy_and_resolve_references()
  everything.data.candidates = 0
  rows = selection.candidates(everything)
  np.testing.assert_array_equal(rows, text.rows(config, "train"))
  few = selection.candidates(config)
  np.testing.assert_array_equal(few[[0, -1]], rows[[0, -1]])
  everything.data.keep = 0.0
  with pytest.raises(ConfigError, match=r"data.keep is a share in \(0, 1\], not 0.0"):
    selection.make(everything)


def test_the_command_scores_once(config, scored, capsys):
  spec, data = "experiments/llm/miniplm.py:smoke", config.data
  overrides = [f"--config.data.{k}={data[k]}" for k in ("source", "candidates")]
  selection.main(["--config", spec, f"--config.cache_dir={config.cache_dir}", *overrides])
  assert capsys.readouterr().out.startswith("27 rows, scores from ")
