"""One text in two tokenizers' tokens: chunks spell the same on both sides, each predicted once."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from distill_jax.config import ROOT, ConfigError
from distill_jax.data import text, tokenizer, two_tokenizers

PAIRS = str(ROOT / "distill_jax/assets/stdlib_teacher")
TEXTS = {
  "0.txt": "def first(self):\n    return self.value + 17\n\n" * 3,
  "1.txt": "naïve — “quoted” 日本語\n" * 4,
  "58.txt": "import held_out\n" * 30,
}


@pytest.fixture
def config(tmp_path):
  (tmp_path / "texts").mkdir()
  for name, content in TEXTS.items():
    (tmp_path / "texts" / name).write_text(content)
  config = ConfigDict(dict(seed=0, batch_size=2, eval_batches=1, cache_dir=str(tmp_path / "cache")))
  config.data = dict(field="text", tokenizer="bytes", teacher_tokenizer=PAIRS)
  config.data.source = str(tmp_path / "texts")
  config.data.seq_len, config.data.teacher_seq_len = 24, 9
  return config


def chunks_of(example, config):
  """The bytes of the chunks of a row on both sides, in order; the end of a document is a 0."""
  sides = []
  for prefix, name in (("", config.data.tokenizer), ("teacher_", config.data.teacher_tokenizer)):
    tokens = tokenizer.load(name)
    spelled: dict[int, bytes] = {}
    ids, numbers = example[f"{prefix}tokens"][1:], example[f"{prefix}chunks"]
    for i, number, counts in zip(ids, numbers, example[f"{prefix}mask"], strict=True):
      assert counts == (number < config.data.seq_len)
      if counts:
        spelled[int(number)] = spelled.get(int(number), b"") + byte_string(tokens, i)
    assert list(spelled) == list(range(len(spelled)))
    sides.append(list(spelled.values()))
  return sides


def byte_string(tokens, i):
  if i == tokens.end:
    return b"\0"
  if tokens.vocab_size == 257:
    return bytes([i])
  return PIECES[int(i)]


def _pieces():
  """The bytes of each byte pair, from the vocabulary file, whose printable characters stand for
  bytes."""
  import json

  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in printable]
  known = {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
  vocabulary = json.loads((ROOT / PAIRS / "tokenizer.json").read_text())["model"]["vocab"]
  return {
    i: bytes(known[c] for c in piece)
    for piece, i in vocabulary.items()
    if all(c in known for c in piece)
  }


PIECES = _pieces()


def test_chunks_spell_the_same_on_both_sides_and_every_byte_is_predicted_once(config):
  aligned = two_tokenizers.align(config, "train")
  predicted = b""
  for row in range(len(aligned.rows)):
    student, teacher = chunks_of(aligned.example(row), config)
    assert student == teacher and student
    predicted += b"".join(student)
  whole = b"".join(TEXTS[name].encode() + b"\0" for name in ("0.txt", "1.txt"))
  assert whole.endswith(predicted) and len(whole) - len(predicted) <= 4  # the first chunk is read


def test_chunks_are_as_short_as_both_tokenizers_allow(config):
  aligned = two_tokenizers.align(config, "train")
  example = aligned.example(0)
  assert (np.diff(example["teacher_chunks"][example["teacher_mask"]]) == 1).all()
  config.data.tokenizer, config.data.teacher_tokenizer = PAIRS, "bytes"
  config.data.seq_len, config.data.teacher_seq_len = 9, 24
  example = two_tokenizers.align(config, "train").example(0)
  assert (np.diff(example["chunks"][example["mask"]]) == 1).all()


def test_the_same_tokenizer_twice_makes_a_chunk_of_each_token(config):
  config.data.teacher_tokenizer, config.data.teacher_seq_len = "bytes", 24
  example = two_tokenizers.align(config, "train").example(0)
  np.testing.assert_array_equal(example["tokens"], example["teacher_tokens"])
  np.testing.assert_array_equal(example["chunks"], np.arange(24))
  ids = text.token_ids(config, "train")
  np.testing.assert_array_equal(example["tokens"], ids[:25])


def test_a_chunk_that_no_row_holds_is_passed_over(config):
  whole = sum(e.sum() for e in masks(config))
  config.data.seq_len = 3  # "return" does not fit
  short = masks(config)
  assert 0 < sum(e.sum() for e in short) < whole
  aligned = two_tokenizers.align(config, "train")
  for row in range(len(aligned.rows)):
    student, teacher = chunks_of(aligned.example(row), config)
    assert student == teacher and student and max(map(len, student)) <= 3


def masks(config):
  aligned = two_tokenizers.align(config, "train")
  return [aligned.example(row)["mask"] for row in range(len(aligned.rows))]


def test_rows_join_at_random_boundaries():
  """Against the slow definition, on random places."""
  random = np.random.default_rng(0)
  for _ in range(20):
    places = [np.append(0, np.cumsum(random.integers(1, 5, 40))) for _ in range(2)]
    rows = two_tokenizers._rows(places, (9, 7))
    begins = [np.flatnonzero(places[0] == row[0])[0] for row in rows]
    stops = [np.flatnonzero(places[0] == row[1])[0] for row in rows]
    for row, begin, stop in zip(rows, begins, stops, strict=True):
      assert row.tolist() == [p[i] for p in places for i in (begin, stop)]
      assert row[1] - row[0] <= 10 and row[3] - row[2] <= 8 and stop >= begin + 2
      if stop < 40:
        assert (
          places[0][stop + 1] - row[0] > 10 or places[1][stop + 1] - row[2] > 8
        )  # no room for one more
    assert stops[-1] >= 39 and all(b >= s - 1 for b, s in zip(begins[1:], stops[:-1], strict=True))


def test_batches_have_the_shapes_of_spec_and_processes_share_them(config, monkeypatch):
  whole, spec = next(iter(two_tokenizers.make(config))), two_tokenizers.spec(config)
  assert {k: (v.shape, v.dtype) for k, v in whole.items()} == {
    k: (v.shape, v.dtype) for k, v in spec.items()
  }
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  shares = []
  for index in range(2):
    monkeypatch.setattr(jax, "process_index", lambda index=index: index)
    shares.append(next(iter(two_tokenizers.make(config))))
  for name in whole:
    np.testing.assert_array_equal(np.concatenate([s[name] for s in shares]), whole[name])


def test_validation_is_the_text_held_out(config):
  (batch,) = two_tokenizers.validation(config)
  row = bytes(i for i in batch["tokens"][0] if i < 256)
  assert batch["tokens"].shape == (2, 25) and row in TEXTS["58.txt"].encode()


def test_mistakes_are_told_in_one_line(config, monkeypatch):
  config.data.seq_len = 0
  with pytest.raises(ConfigError, match="fills no row of 0 student's and 9 teacher's tokens"):
    two_tokenizers.align(config, "train")
  lossy = tokenizer.load("bytes")._replace(encode=lambda texts: [np.zeros(3, np.int32)] * 2)
  load = tokenizer.load
  monkeypatch.setattr(
    tokenizer, "load", lambda n: lossy._replace(fingerprint="x") if n == "bytes" else load(n)
  )
  with pytest.raises(ConfigError, match="both must spell it byte for byte"):
    two_tokenizers.align(config, "train")
  config.data.teacher_tokenizer = ""
  with pytest.raises(ConfigError, match=r"data.teacher_tokenizer is empty"):
    two_tokenizers.align(config, "train")


def test_ids_that_two_tokenizers_share_and_tokens_that_begin_a_word():
  student, teacher = two_tokenizers.shared_ids("bytes", PAIRS)
  assert (student[-1], teacher[-1]) == (256, tokenizer.load(PAIRS).end)
  assert sorted(student[:-1]) == list(range(128))  # no byte of a longer character
  assert all(PIECES[int(t)] == bytes([s]) for s, t in zip(student[:-1], teacher[:-1], strict=True))
  starts = two_tokenizers.word_starts(PAIRS)
  assert starts[tokenizer.load(PAIRS).end]
  ends = {tokenizer.load(PAIRS).end}
  plain = {i: piece.decode() for i, piece in PIECES.items() if piece.isascii() and i not in ends}
  assert {i: bool(starts[i]) for i in plain} == {i: t[0].isspace() for i, t in plain.items()}
