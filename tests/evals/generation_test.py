"""Generation: ROUGE-L against the reference package, and a student whose text is known."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax.config import ConfigError
from distill_jax.data import text, tokenizer
from distill_jax.evals import generation
from distill_jax.mesh import make_mesh
from distill_jax.models import student as student_lib
from distill_jax.models import transformer

END = 256


def slow_common(a, b):
  @functools.cache
  def best(i, j):
    if i == len(a) or j == len(b):
      return 0
    if a[i] == b[j]:
      return 1 + best(i + 1, j + 1)
    return max(best(i + 1, j), best(i, j + 1))

  return best(0, 0)


def test_the_common_subsequence_is_that_of_its_definition():
  rng = np.random.default_rng(0)
  for _ in range(200):
    a, b = ("".join(rng.choice(list("abc"), rng.integers(0, 9))) for _ in range(2))
    assert generation._common_subsequence(a, b) == slow_common(a, b), (a, b)


TEXTS = (
  "The quick brown fox, jumps over",
  "the brown dog jumps OVER the fox!",
  "def f(x_1): return x_1 + 2",
  "return x_1",
  "",
  "...",
  "naïve café 42",
)


def test_rouge_l_is_that_of_the_package():
  rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
  scorer = rouge_scorer.RougeScorer(["rougeL"])
  for text_, reference in itertools.product(TEXTS, TEXTS):
    expected = scorer.score(reference, text_)["rougeL"].fmeasure
    assert generation.rouge_l(text_, reference) == pytest.approx(expected), (text_, reference)


def test_rouge_l_by_hand():
  assert generation.rouge_l("a b c d", "a c e") == pytest.approx(2 * 2 / 7)
  assert generation.rouge_l("A-b", "a B") == 1


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
  root = tmp_path_factory.mktemp("generation")
  (root / "58.txt").write_text("abcdefghijklmnopqrstuvwxyz" * 20)  # held out
  (root / "0.txt").write_text("of training " * 20)
  return [f"data.source={root}", f"cache_dir={root / 'cache'}", "data.seq_len=24"]


def experiment(keys, *more):
  return config_lib.load("experiments/llm/kd.py:smoke", (*keys, *more))


def successor(monkeypatch):
  """A student that writes the next letter of the alphabet, and ends after z."""
  table = np.zeros((257, 257), np.float32)
  following = np.arange(257) + 1
  following[ord("z")] = END
  table[np.arange(257), following % 257] = 1
  model = transformer.Model(
    init=None,
    hidden=None,
    decode=lambda params, tokens, cache, positions: (params[tokens], cache),
    init_cache=lambda batch, length: {},
    head=None,
    logits=lambda params, hidden: hidden,
    vocabulary=257,
    logit_softcap=0.0,
    tied=False,
  )
  monkeypatch.setattr(student_lib, "model", lambda config, name: model)
  return dict(student=jnp.asarray(table))


def measure(config, state):
  with jax.set_mesh(make_mesh(config.mesh)):
    return generation.make(config)(state, {})


def test_prompts_of_a_file(keys, tmp_path, monkeypatch):
  rows = [
    ("start abc", "defghijk"),  # right
    ("abc", " defghijk \n"),  # right but for white space
    ("x", "yz"),  # ends by itself
    ("long, long, much too long a", "bcdefghx"),  # cut at its beginning; one letter is wrong
    ("wx", "yz and"),  # half of the words
  ]
  lines = [json.dumps(dict(prompt=p, completion=c)) for p, c in rows]
  (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n\n")
  config = experiment(keys, f"eval_prompts={tmp_path / 'prompts.jsonl'}")
  found = measure(config, successor(monkeypatch))
  expected = dict(exact_match=3 / 5, rouge_l=(3 + 0 + 2 / 3) / 5, length=(8 + 8 + 2 + 8 + 2) / 5)
  assert found == pytest.approx(expected)


def test_held_out_text_is_continued(keys, monkeypatch):
  config = experiment(keys, "eval_batches=2")
  found = measure(config, successor(monkeypatch))
  rows = text.rows(config, "validation")
  chosen = rows[np.linspace(0, len(rows) - 1, 16).astype(int)]
  alphabet = "abcdefghijklmnopqrstuvwxyz"
  right, sizes = [], []
  for row in chosen:  # it ends after z, the text goes on
    own = (alphabet + "\n").partition(chr(row[7]))[2].strip()[:8]
    right.append(own == bytes(row[8:16].tolist()).decode())
    sizes.append(len(own))
  assert found["exact_match"] == pytest.approx(np.mean(right)) and 0 < np.mean(right) < 1
  assert found["length"] == pytest.approx(np.mean(sizes))


def test_held_out_completions(keys, tmp_path):
  lines = [dict(prompt=f"q{i}:", completion=f"a{i}") for i in range(100)]
  (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, lines)))
  config = experiment(keys, "data.name=completions", f"data.source={tmp_path / 'all.jsonl'}")
  found = generation.pairs(config)
  decode = tokenizer.load("bytes").decode
  held = [i for i in range(100) if text.held_out(str(i + 1))]  # by its line
  assert [(decode(ids), answer) for ids, answer in found] == [(f"q{i}:", f"a{i}") for i in held]


def test_a_real_model_writes_the_likeliest_tokens(keys):
  config = experiment(keys, "eval_batches=1", "eval_tokens=3")
  model = student_lib.model(config, "student")
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), shapes)
  found = measure(config, dict(student=params))
  prompts = np.stack([ids for ids, _ in generation.pairs(config)])
  tokens = np.pad(prompts, ((0, 0), (0, 3)))
  hidden = jax.jit(model.hidden)
  for t in range(prompts.shape[1], tokens.shape[1]):
    tokens[:, t] = model.logits(params, hidden(params, tokens)[:, t - 1]).argmax(-1)
  written = tokens[:, prompts.shape[1] :]
  ended = np.cumsum(written == END, axis=1) > 0
  assert found["length"] == pytest.approx((~ended).sum() / len(written))


@pytest.mark.parametrize(
  "lines, more, words",
  [
    ("", (), "has no prompt"),
    ('{"prompt": "", "completion": "a"}', (), "a prompt is empty"),
    ('{"prompt": "a"}', (), "no text 'completion'"),
    ('{"prompt": "a", "completion": "a"}', ("eval_tokens=30",), "eval_tokens 30 leave no prompt"),
  ],
)
def test_what_is_missing_is_named(keys, tmp_path, lines, more, words):
  (tmp_path / "prompts.jsonl").write_text(lines)
  config = experiment(keys, f"eval_prompts={tmp_path / 'prompts.jsonl'}", *more)
  with pytest.raises(ConfigError) as error:
    measure(config, {})
  assert words in str(error.value) and "\n" not in str(error.value)
