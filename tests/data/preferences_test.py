"""Pairs of answers as rows of tokens."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from distill_jax.config import ConfigError
from distill_jax.data import completions, preferences, text

END = 256


@pytest.fixture
def config(tmp_path):
  config = ConfigDict(dict(seed=0, batch_size=2, eval_batches=1, cache_dir=str(tmp_path / "cache")))
  config.data = dict(field="text", tokenizer="bytes", seq_len=7)
  config.data.source = str(tmp_path / "pairs.jsonl")
  return config


def write(config, *triples):
  """Triples as lines of the training split, and one line that is held out."""
  free = (n for n in range(1, 1000) if not text.held_out(str(n)))
  lines = dict(zip(free, triples, strict=False)) | {6: ("p", "good", "bad")}
  names = ("prompt", "chosen", "rejected")
  with open(config.data.source, "w") as file:
    for number in range(1, max(lines) + 1):
      line = lines.get(number)
      file.write((json.dumps(dict(zip(names, line, strict=True))) if line else "") + "\n")


def spelled(tokens, mask):
  letters = "".join("|" if t == END else chr(t) for t in tokens)
  return letters, " " + "".join("^" if m else " " for m in mask)


def test_both_answers_follow_the_prompt_and_alone_count(config):
  write(config, ("ab", "cd", "efg"), ("abc", "", "defghijk"))
  tokens, mask = preferences.rows(config, "train")
  assert [
    spelled(t, m) for t, m in zip(tokens.reshape(-1, 8), mask.reshape(-1, 7), strict=True)
  ] == [
    ("abcd||||", "  ^^^   "),
    ("abefg|||", "  ^^^^  "),
    ("abc|||||", "   ^    "),
    ("abcdefgh", "   ^^^^^"),
  ]


def test_pairs_without_room_for_an_answer_are_left_out(config):
  write(config, ("abcdefgh", "x", "y"), ("abcdefg", "x", "y"))
  tokens, _ = preferences.rows(config, "train")
  assert len(tokens) == 1 and spelled(tokens[0, 1], [])[0] == "abcdefgy"
  write(config, ("abcdefgh", "x", "y"))
  with pytest.raises(ConfigError, match="has no pair for the train split"):
    preferences.rows(config, "train")


def test_a_line_without_a_field_is_named(config):
  with open(config.data.source, "w") as file:
    file.write('{"prompt": "a", "chosen": "b"}\n')
  with pytest.raises(ConfigError) as error:
    preferences.rows(config, "train")
  assert str(error.value).startswith(f"{config.data.source}:1: no text 'rejected'")


def test_batches_have_the_shapes_of_spec_and_processes_share_them(config, monkeypatch):
  write(config, *((f"{i:02}", "yes", "no") for i in range(20)))
  data = iter(preferences.make(config))
  whole, spec = next(data), preferences.spec(config)
  assert {k: (v.shape, v.dtype) for k, v in whole.items()} == {
    k: (v.shape, v.dtype) for k, v in spec.items()
  }
  state, expected = data.get_state(), next(data)["tokens"]
  data.set_state(state)
  np.testing.assert_array_equal(next(data)["tokens"], expected)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  shares = []
  for index in range(2):
    monkeypatch.setattr(jax, "process_index", lambda index=index: index)
    shares.append(next(iter(preferences.make(config))))
  for name in whole:
    np.testing.assert_array_equal(np.concatenate([s[name] for s in shares]), whole[name])


def test_validation_is_the_held_out_chosen_answers(config):
  config.batch_size = 1
  write(config, ("ab", "cd", "efg"))
  (batch,) = preferences.validation(config)
  assert spelled(batch["tokens"][0], batch["mask"][0]) == ("pgood|||", " ^^^^^  ")


def test_the_standard_library_pairs_each_body_with_another_of_its_split(config):
  config.data.source = "stdlib"
  found = preferences.pairs(config, "train")
  assert len(found) > 3000
  own = {body for name, _, body in completions.functions() if not text.held_out(name)}
  for name, _, chosen, rejected in found:
    assert chosen != rejected and rejected in own and not text.held_out(name)
