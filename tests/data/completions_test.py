"""Packed prompts and completions: which tokens lie where, which of them count, and what a model
sees of its neighbours in a row."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from distill_jax.config import ConfigError
from distill_jax.data import completions, text, tokenizer
from distill_jax.models import student as student_lib
from distill_jax.models import transformer

END = 256


@pytest.fixture
def config(tmp_path):
  config = ConfigDict(dict(seed=0, batch_size=2, eval_batches=1, cache_dir=str(tmp_path / "cache")))
  config.data = dict(field="text", tokenizer="bytes", seq_len=11, targets="completion")
  config.data.source = str(tmp_path / "pairs.jsonl")
  return config


def write(config, *pairs):
  """Pairs as the first lines of the file that are for training; two more are held out."""
  lines = {}
  free = (n for n in range(1, 1000) if not text.held_out(str(n)))
  for number, (prompt, completion) in zip(free, pairs, strict=False):
    lines[number] = json.dumps(dict(prompt=prompt, completion=completion))
  for number in (6, 37):  # whose name hashes to one in twenty
    lines[number] = json.dumps(dict(prompt="p", completion="held"))
  with open(config.data.source, "w") as file:
    file.write("".join(lines.get(n, "") + "\n" for n in range(1, max(lines) + 1)))


def spelled(example):
  """A row as text, | for the end of a document, _ for padding; segments; counted targets."""
  tokens, segments = example["tokens"], example["segments"]
  row = [
    ("_" if s == 0 else "|" if t == END else chr(t)) for t, s in zip(tokens, segments, strict=True)
  ]
  marks = [" ", *("^" if m else " " for m in example["mask"])]
  return "".join(row), "".join(map(str, segments)), "".join(marks)


def rows(config, split="train"):
  packed = completions.pack(config, split)
  return [spelled(packed.example(i)) for i in range(len(packed.rows))]


def test_a_row_holds_whole_examples_and_counts_their_completions(config):
  write(config, ("ab", "cd"), ("ef", "g"), ("hi", "jklm"), ("n", "o"))
  assert rows(config) == [
    ("abcd|efg|no|", "111112222333", "  ^^^  ^^ ^^"),
    ("hijklm|_____", "111111100000", "  ^^^^^     "),
  ]
  config.data.targets = "all"
  assert [marks for _, _, marks in rows(config)] == [" ^^^^ ^^^ ^^", " ^^^^^^     "]


def test_only_the_end_of_an_empty_completion_counts_and_a_first_token_never(config):
  write(config, ("ab", ""), ("", "cd"), ("", ""))
  assert rows(config) == [("ab|cd|______", "111222000000", "  ^ ^^      ")]


def test_what_is_longer_than_a_row_is_cut_and_left_out_without_a_completion(config):
  write(config, ("abcdefgh", "ijklmnop"), ("0123456789+-", "no room"), ("0123456789+", "one"))
  assert rows(config) == [
    ("abcdefghijkl", "111111111111", "        ^^^^"),
    ("0123456789+o", "111111111111", "           ^"),
  ]


def test_text_without_prompts_is_cut_into_pieces_and_every_token_is_a_target_once(config, tmp_path):
  (tmp_path / "texts").mkdir()
  content = dict(zip(("0.txt", "1.txt"), ("abcdefghijklmnopqrstuvwx", "xyz"), strict=True))
  for name, body in (*content.items(), ("58.txt", "held")):
    (tmp_path / "texts" / name).write_text(body)
  config.data.source = str(tmp_path / "texts")
  assert rows(config) == [
    ("abcdefghijkl", "111111111111", " ^^^^^^^^^^^"),
    ("lmnopqrstuvw", "111111111111", " ^^^^^^^^^^^"),
    ("wx|xyz|_____", "111222200000", " ^^ ^^^     "),
  ]


def test_a_token_that_begins_texts_is_the_first_of_every_example(config, monkeypatch):
  known = tokenizer.load("bytes")._replace(begin=ord("<"))
  monkeypatch.setattr(tokenizer, "load", lambda name: known)
  write(config, ("ab", "cd"), ("", "efghijklmnopq"))
  assert rows(config) == [
    ("<abcd|<pq|__", "111111222200", "   ^^^ ^^^  "),
    ("<efghijklmno", "111111111111", " ^^^^^^^^^^^"),
  ]


def test_first_fit_fills_gaps_and_never_overfills():
  lengths = np.random.default_rng(0).integers(1, 11, 500)
  packed = completions.first_fit(lengths, 10)
  assert sorted(i for row in packed for i in row) == list(range(500))
  sums = [sum(lengths[i] for i in row) for row in packed]
  assert max(sums) <= 10 and np.mean(sums) > 9
  assert completions.first_fit([6, 6, 4, 5], 10) == [[0, 2], [1], [3]]


@pytest.mark.parametrize(
  "line, problem",
  [
    ('{"prompt": "a", "completion":', "not JSON"),
    ('{"prompt": "a", "completions": "b"}', "no text 'completion'. Did you mean 'completions'?"),
    ('{"prompt": "a", "completion": 7}', "no text 'completion'"),
    ('["a", "b"]', "no text 'prompt'"),
  ],
)
def test_a_line_that_is_no_example_is_named(config, line, problem):
  with open(config.data.source, "w") as file:
    file.write('{"prompt": "a", "completion": "b"}\n\n' + line + "\n")
  with pytest.raises(ConfigError) as error:
    completions.pack(config, "train")
  assert f"{config.data.source}:3: {problem}" in str(error.value) and "\n" not in str(error.value)


def test_a_source_that_is_not_there_or_holds_nothing_says_so(config):
  with pytest.raises(ConfigError, match="there is no such file"):
    completions.pack(config, "train")
  write(config)
  with pytest.raises(ConfigError, match="has no example for the train split"):
    completions.pack(config, "train")
  config.data.targets = "completions"
  with pytest.raises(ConfigError, match=r"data.targets is 'completion' or 'all'"):
    completions.pack(config, "train")


def test_batches_have_the_shapes_of_spec_and_an_iterator_goes_on_where_it_was(config):
  write(config, *((f"{i:02}", f"{i:04}") for i in range(20)))
  data = iter(completions.make(config))
  first, spec = next(data), completions.spec(config)
  assert {k: (v.shape, v.dtype) for k, v in first.items()} == {
    k: (v.shape, v.dtype) for k, v in spec.items()
  }
  state = data.get_state()
  expected = [next(data)["tokens"] for _ in range(25)]
  fresh = iter(completions.make(config))
  fresh.set_state(state)
  np.testing.assert_array_equal([next(fresh)["tokens"] for _ in range(25)], expected)
  assert len({row.tobytes() for batch in expected[:9] for row in batch}) > 9


def test_processes_share_a_batch(config, monkeypatch):
  write(config, *((f"{i:02}", f"{i:04}") for i in range(20)))
  whole = next(iter(completions.make(config)))
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  shares = []
  for index in range(2):
    monkeypatch.setattr(jax, "process_index", lambda index=index: index)
    shares.append(next(iter(completions.make(config))))
  for name in whole:
    np.testing.assert_array_equal(np.concatenate([s[name] for s in shares]), whole[name])


def test_validation_is_what_is_held_out(config):
  write(config, ("ab", "cd"))
  config.batch_size = 1
  (batch,) = completions.validation(config)
  assert spelled({k: v[0] for k, v in batch.items()})[0] == "pheld|pheld|"


def test_functions_of_the_standard_library_are_source_in_two_parts():
  found = completions.functions()
  assert len(found) > 3000
  for name, prompt, completion in found[:: len(found) // 50]:
    assert name.endswith(".py") and prompt.lstrip().startswith(("def ", "async def "))
    assert '"' in prompt or "'" in prompt
    assert completion.strip()
  names = [prompt.split("(")[0].strip() for name, prompt, _ in found if name == "json/__init__.py"]
  assert names == ["def dump", "def dumps", "def load", "def loads"]


@pytest.mark.parametrize("window", [0, 3])
def test_a_document_in_a_packed_row_has_the_hidden_states_that_it_has_alone(config, window):
  write(config, ("ab", "cd"), ("ef", "g"), ("hi", "jklm"), ("n", "o"))
  packed = completions.pack(config, "train")
  arch = transformer.default_config()
  arch.update(dict(vocab_size=264, layers=2, width=16, heads=2, kv_heads=2, head_dim=8))
  arch.update(dict(mlp_width=32, sliding_window=window))
  model = transformer.make(arch, 257)
  params = model.init(jax.random.key(0))
  batch = jax.tree.map(lambda *x: jnp.stack(x), *(packed.example(i) for i in range(2)))
  hidden = jax.jit(lambda batch: student_lib.hidden(model, params, batch))
  together = hidden(batch)
  compared = 0
  for row, segments in enumerate(batch["segments"]):
    for number in range(1, int(segments.max()) + 1):
      at = np.flatnonzero(segments == number)[:-1]  # the last token is a target only
      alone = np.zeros((1, 12), np.int32)  # what follows it is not seen
      alone[0, : len(at)] = batch["tokens"][row, at]
      expected = hidden(dict(tokens=alone))[0, : len(at)]
      np.testing.assert_allclose(together[row, at], expected, rtol=1e-5, atol=1e-5)
      compared += len(at)
  assert compared == 4 + 3 + 2 + 6
  without = hidden(dict(tokens=batch["tokens"]))
  assert np.abs(without[0, 5] - together[0, 5]).max() > 1e-3  # neighbours would matter


def by_turns(messages, add_generation_prompt=False):
  """<u:text;a:text; with the announcement of an answer, and words after each end of document."""
  text = "<" + "".join(f"{m['role'][0]}:{m['content']};" for m in messages)
  return text + "a:" * add_generation_prompt


@pytest.fixture
def chatty(monkeypatch):
  plain = tokenizer.load("bytes")
  encode = lambda texts, special: plain.encode(texts)  # noqa: E731
  known = plain._replace(encode=encode, begin=ord("<"), end=ord(";"), chat=by_turns)
  monkeypatch.setattr(tokenizer, "load", lambda name: known)


def say(config, *conversations):
  """As `write`, for conversations of ("u", text), ("a", text) pairs."""
  roles = dict(u="user", a="assistant", s="system")
  free = (n for n in range(1, 1000) if not text.held_out(str(n)))
  lines = {6: conversations[0], **dict(zip(free, conversations, strict=False))}
  written = [
    json.dumps(dict(messages=[dict(role=roles[r], content=c) for r, c in lines[n]]))
    if n in lines
    else ""
    for n in range(1, max(lines) + 1)
  ]
  with open(config.data.source, "w") as file:
    file.write("\n".join(written))


def test_the_last_answer_of_a_conversation_is_the_completion(config, chatty):
  config.data.seq_len = 15
  say(config, [("u", "q"), ("a", "yes")], [("u", "q"), ("a", "r"), ("u", "s"), ("a", "t")])
  assert rows(config) == [
    ("<u:q;a:yes;_____", "1111111111100000", "       ^^^^     "),
    ("<u:q;a:r;u:s;a:t", "1111111111111111", "               ^"),
  ]


@pytest.mark.parametrize(
  "record",
  [dict(messages=[]), dict(messages=[dict(role="user", content="q")] * 2), dict(messages="hello")],
)
def test_what_is_no_conversation_is_named(config, chatty, record):
  with open(config.data.source, "w") as file:
    file.write(json.dumps(record))
  with pytest.raises(ConfigError, match=r'pairs.jsonl:1: "messages" is to be a list'):
    completions.pack(config, "train")


def test_a_tokenizer_without_a_template_writes_no_conversations(config):
  say(config, [("u", "q"), ("a", "yes")])
  with pytest.raises(ConfigError, match="tokenizer 'bytes' has no chat template"):
    completions.pack(config, "train")
