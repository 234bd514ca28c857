"""lm-eval on a model of ours, offline: its likelihoods are our own, its tasks are local files."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.config import ROOT
from distill_jax.data import tokenizer
from distill_jax.evals import harness
from distill_jax.models import pretrained, transformer

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("default")  # those of lm_eval and datasets are not ours

TEACHER = str(ROOT / "distill_jax/assets/stdlib_teacher")
PAIRS = [
  ("import numpy as", " np"),
  ("def __init__(", "self"),
  ("for i in ", "range(10):\n    print(i)"),  # the space goes to the continuation
  ("", "return None"),
  ("x", ""),
  ("class Error(Exception):\n" * 40, "  pass"),  # longer than the model's window
]


@pytest.fixture(scope="module")
def parts():
  tokens = tokenizer.load(TEACHER)
  model = transformer.make(pretrained.read_architecture(TEACHER), tokens.vocab_size)
  params = jax.tree.map(jnp.asarray, pretrained.load(TEACHER))
  return model, params, tokens


@pytest.fixture(scope="module")
def lm(parts):
  model, params, tokens = parts
  return harness.adapter(model, params, tokens, max_length=128, batch_size=3, chunk=100)


def requests(*arguments):
  return [types.SimpleNamespace(args=args) for args in arguments]


def log_probs(parts, ids):
  """[len(ids) - 1, V] of the whole text, in one row."""
  model, params, _ = parts
  padded = np.zeros((1, 128), np.int32)
  padded[0, : len(ids) - 1] = ids[:-1]
  logits = model.logits(params, jax.jit(model.hidden)(params, padded))[0]
  return np.asarray(jax.nn.log_softmax(logits))[: len(ids) - 1]


def test_likelihoods_are_our_own(parts, lm):
  tokens = parts[2]
  found = lm.loglikelihood(requests(*PAIRS))
  for (context, after), (total, greedy) in zip(PAIRS, found, strict=True):
    ids = tokens.encode([context + after])[0] if context else [tokens.end]
    begin = len(tokens.encode([context.rstrip()])[0]) if context else 1
    ids = [*ids, *(() if context else tokens.encode([after])[0])]
    count = len(ids) - begin
    ids = np.array(ids)[-129:]
    table = log_probs(parts, ids)
    place = np.arange(len(ids) - 1 - count, len(ids) - 1)
    assert total == pytest.approx(table[place, ids[place + 1]].sum(), rel=1e-4, abs=1e-5)
    assert greedy == (table[place].argmax(-1) == ids[place + 1]).all()
  assert found[1][1] and not found[3][1] and found[4] == (0.0, True)


def test_rolling_likelihood_predicts_each_token_once(parts, lm):
  tokens, text = parts[2], "def f(x):\n  return x + 1\n"
  ids = [tokens.end, *tokens.encode([text])[0]]
  table = log_probs(parts, ids)
  expected = table[np.arange(len(ids) - 1), ids[1:]].sum()
  long = text * 30
  several = lm.loglikelihood_rolling(requests((text,), ("",), (long,)))
  assert several[0] == pytest.approx(expected, rel=1e-4) and several[1] == 0
  count = len(tokens.encode([long])[0])
  assert count > 128 and -3 * count < several[2] < -0.1 * count


def test_generation_is_greedy_and_stops(parts, lm):
  tokens = parts[2]
  options = dict(max_gen_toks=12, until=["\n"])
  asked = [("def __init__(self", options), ("import ", dict(max_gen_toks=5)), ("for i in", options)]
  found = lm.generate_until(requests(*asked))
  for (prompt, options), text in zip(asked, found, strict=True):
    ids = [int(i) for i in tokens.encode([prompt])[0]]
    begun = len(ids)
    for _ in range(options["max_gen_toks"]):
      ids.append(int(log_probs(parts, [*ids, 0])[-1].argmax()))
    whole = tokens.decode([i for i in ids[begun:] if i != tokens.end])
    assert text == (whole.partition("\n")[0] if "until" in options else whole)
  assert found[0] and "\n" not in found[0]


def test_samples_are_refused(lm):
  with pytest.raises(harness.ConfigError, match="this adapter is greedy"):
    lm.generate_until(requests(("x", dict(do_sample=True, temperature=0.7))))


def test_widths_are_few_and_every_row_is_in_one():
  lengths = [1, 32, 33, 500, 64, 65, 2, 3]
  found = list(harness._batches(lengths, 2, 128))
  assert sorted(n for chosen, _ in found for n in chosen) == list(range(8))
  for chosen, width in found:
    assert len(chosen) <= 2 and width in (32, 64, 128)
    assert all(lengths[n] <= width or width == 128 for n in chosen)


CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""

WRITE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
generation_kwargs: {{until: [")", ","], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


def test_local_tasks_from_the_command_line(tmp_path, monkeypatch):
  monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
  rows = [
    dict(prompt="def __init__(", choices=["self", "table"], label=0, answer="self"),
    dict(prompt="for i in", choices=[" xyzzy", " range("], label=1, answer="no such thing"),
    dict(prompt="    raise", choices=[" ValueError", " 12"], label=1, answer="no such thing"),
  ]
  for name, text in (("choosing", CHOICE), ("writing", WRITE)):
    file = tmp_path / f"{name}.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / f"{name}.yaml").write_text(text.format(name=name, file=file))
  argv = ["--model", TEACHER, "--include_path", str(tmp_path), "--max_length", "64"]
  argv += ["--out", str(tmp_path / "results.json")]
  assert harness.main([*argv, "--tasks", "choosing,writing"]) == 0
  results = json.loads((tmp_path / "results.json").read_text())
  assert results["choosing"]["acc,none"] == pytest.approx(2 / 3)  # the last label is wrong
  assert results["writing"]["exact_match,none"] == pytest.approx(1 / 3)


def test_a_task_that_is_none_is_named(tmp_path, monkeypatch, capsys):
  from lm_eval import tasks

  class Manager:
    def __init__(self, include_path, include_defaults):
      pass

    def match_tasks(self, names):
      return []

  monkeypatch.setattr(tasks, "TaskManager", Manager)  # the index of the real one takes seconds
  argv = ["--model", TEACHER, "--include_path", str(tmp_path), "--tasks", "no_such"]
  assert harness.main(argv) == 2
  assert "lm-eval has no task 'no_such'" in capsys.readouterr().err
