"""Text to rows of tokens: split, windows, cache, the order over processes and epochs."""

import itertools
import pathlib
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from distill_jax.config import ConfigError
from distill_jax.data import text, tokenizer

END = 256
TRAIN, HELD_OUT = ("0.txt", "1.txt", "2.txt", "sub/3.py"), ("110.txt", "58.txt")


@pytest.fixture
def folder(tmp_path):
  """Documents of 30 bytes and more, two of them held out, among files that are no text."""
  root = tmp_path / "texts"
  for i, name in enumerate((*TRAIN, *HELD_OUT, "4.png", "5")):
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(" ".join(f"{i}-{j:02}" for j in range(6 + i)))
  return root


@pytest.fixture
def config(folder, tmp_path):
  config = ConfigDict(dict(seed=0, batch_size=4, eval_batches=2, cache_dir=str(tmp_path / "cache")))
  config.data = dict(source=str(folder), field="text", tokenizer="bytes", seq_len=8)
  return config


def one_line(error) -> str:
  assert "\n" not in str(error.value)
  return str(error.value)


def take(config, batches):
  data = iter(text.make(config))
  return [next(data) for _ in range(batches)]


def test_the_split_is_a_hash_of_the_name():
  """These numbers hold on every machine and in every process, for ever: models are compared by
  them."""
  assert [i for i in range(120) if text.held_out(str(i))] == [6, 37, 40, 82, 94, 115]
  held = np.mean([text.held_out(f"folder/file_{i}.py") for i in range(10_000)])
  assert 0.04 < held < 0.06


def test_documents_of_a_folder_are_named_from_it_and_sorted(folder, tmp_path):
  documents = list(text.documents(str(folder), "text"))
  assert [name for name, _ in documents] == [
    "0.txt",
    "1.txt",
    *HELD_OUT[:1],
    "2.txt",
    "58.txt",
    "sub/3.py",
  ]
  assert documents[0][1] == "0-00 0-01 0-02 0-03 0-04 0-05"
  moved = shutil.move(folder, tmp_path / "elsewhere")
  assert list(text.documents(str(moved), "text")) == documents


def test_bytes_that_are_no_utf8_are_replaced(tmp_path):
  (tmp_path / "a.txt").write_bytes(b"caf\xe9 \xc3\xa9")
  assert list(text.documents(str(tmp_path), "text")) == [("a.txt", "caf\ufffd é")]


def test_a_single_file_is_cut_into_blocks_of_whole_lines(tmp_path):
  lines = [f"line {i} " + "x" * (i % 200) + "\n" for i in range(2000)]
  (tmp_path / "book.txt").write_text("".join(lines) + "the last, without an end")
  blocks = list(text.documents(str(tmp_path / "book.txt"), "text"))
  assert [name for name, _ in blocks] == [str(i) for i in range(len(blocks))] and len(blocks) > 10
  assert "".join(block for _, block in blocks) == "".join(lines) + "the last, without an end"
  assert all(block.endswith("\n") for _, block in blocks[:-1])
  assert all(text.BLOCK <= len(block) < text.BLOCK + 220 for _, block in blocks[:-1])


def test_the_standard_library_is_its_own_source_alone():
  documents = dict(text.documents("stdlib", "text"))
  assert "def dumps" in documents["json/__init__.py"]
  assert all(name.endswith(".py") for name in documents)
  parts = {part for name in documents for part in name.split("/")}
  assert not parts & {"test", "tests", "site-packages", "dist-packages"}
  assert sum(map(len, documents.values())) > 5e6


@pytest.mark.parametrize("source", ["no/such/folder", "stdlb"])
def test_a_source_that_is_nothing_is_named(source):
  with pytest.raises(ConfigError) as error:
    list(text.documents(source, "text"))
  assert repr(source) in one_line(error)


def test_token_ids_are_the_documents_of_a_split_each_with_its_end(config, folder):
  for split, names in (("train", TRAIN), ("validation", HELD_OUT)):
    expected = [token for name in names for token in (*(folder / name).read_bytes(), END)]
    ids = text.token_ids(config, split)
    assert ids.tolist() == expected and ids.dtype == np.int32


def test_a_split_without_text_says_why(config, folder):
  for name in HELD_OUT:
    (folder / name).unlink()
  with pytest.raises(ConfigError) as error:
    text.token_ids(config, "validation")
  assert "has no text for the validation split: one document in twenty" in one_line(error)


def cache_files(config):
  return sorted((pathlib.Path(config.cache_dir) / "tokens").iterdir())


def test_the_cache_spares_tokenising_again(config, monkeypatch):
  first = text.token_ids(config, "train")
  (file,) = cache_files(config)
  before = file.stat().st_mtime_ns

  def refuse(texts):
    raise AssertionError("tokenised again")

  slow = tokenizer.load("bytes")._replace(encode=refuse)
  monkeypatch.setattr(tokenizer, "load", lambda name: slow)
  again = text.token_ids(config, "train")
  assert isinstance(again, np.memmap)
  np.testing.assert_array_equal(again, first)
  assert cache_files(config) == [file] and file.stat().st_mtime_ns == before


def test_the_cache_knows_text_names_split_and_tokenizer(config, folder, monkeypatch):
  def count():
    for split in ("train", "validation"):
      text.token_ids(config, split)
    return len(cache_files(config))

  assert count() == 2
  (folder / "0.txt").write_text((folder / "0.txt").read_text().replace("-", "+"))  # as long
  assert count() == 3
  (folder / "1.txt").rename(folder / "1.md")
  assert not text.held_out("1.md") and count() == 4
  other = tokenizer.load("bytes")._replace(fingerprint="another")
  monkeypatch.setattr(tokenizer, "load", lambda name: other)
  assert count() == 6  # of both splits


@pytest.mark.parametrize("damage", ["beside", "truncated", "empty", "garbage"])
def test_a_partial_cache_file_does_no_harm(config, damage):
  whole = np.array(text.token_ids(config, "train"))
  (file,) = cache_files(config)
  content = file.read_bytes()
  if damage == "beside":  # of a process that was killed while it wrote
    file.unlink()
    (file.parent / "tmpabc.npy").write_bytes(content[:-20])
  else:
    file.write_bytes(dict(truncated=content[:-20], empty=b"", garbage=b"x" * 300)[damage])
  np.testing.assert_array_equal(text.token_ids(config, "train"), whole)
  assert file.read_bytes() == content


def test_windows_overlap_by_the_one_token_that_is_first_input_and_last_target():
  rows = text.windows(np.arange(11, dtype=np.int32), 3)
  assert rows.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
  assert text.windows(np.arange(4, dtype=np.int32), 3).tolist() == [[0, 1, 2, 3]]
  assert np.shares_memory(rows, rows.base) and not rows.flags.writeable
  with pytest.raises(ConfigError, match="3 tokens, not enough for one row of 4"):
    text.windows(np.arange(3, dtype=np.int32), 3)


def rows_of(config):
  return {tuple(row) for row in text.windows(text.token_ids(config, "train"), 8).tolist()}


def test_batches_have_the_shapes_of_spec_and_every_target_counts(config):
  (batch,) = take(config, 1)
  spec = text.spec(config)
  assert set(batch) == set(spec) == {"tokens", "mask"}
  for name, leaf in spec.items():
    assert (batch[name].shape, batch[name].dtype) == (leaf.shape, leaf.dtype)
  assert batch["mask"].all()


def test_an_epoch_holds_each_row_once_and_the_next_in_another_order(config):
  config.batch_size = 1
  rows = rows_of(config)
  count = len(rows)
  assert count > 10
  order = [tuple(b["tokens"][0].tolist()) for b in take(config, 2 * count)]
  assert set(order[:count]) == set(order[count:]) == rows
  assert order[:count] != order[count:]


def test_the_order_is_a_function_of_the_seed(config):
  first, again = (np.stack([b["tokens"] for b in take(config, 3)]) for _ in range(2))
  np.testing.assert_array_equal(first, again)
  config.seed = 1
  assert (np.stack([b["tokens"] for b in take(config, 3)]) != first).any()


@pytest.mark.parametrize("processes", [2, 4])
def test_batches_of_all_processes_make_the_batch_of_one(config, monkeypatch, processes):
  whole = take(config, 9)  # more than an epoch
  monkeypatch.setattr(jax, "process_count", lambda: processes)
  shares = []
  for index in range(processes):
    monkeypatch.setattr(jax, "process_index", lambda index=index: index)
    shares.append(take(config, 9))
  for batch, *parts in zip(whole, *shares, strict=True):
    assert [len(p["tokens"]) for p in parts] == [4 // processes] * processes
    for name in batch:
      np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), batch[name])


def test_a_batch_that_does_not_split_over_processes_is_refused(config, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 3)
  with pytest.raises(ConfigError, match="batch_size 4 does not split over 3 processes"):
    text.make(config)


def test_an_iterator_goes_on_where_its_state_was_taken(config):
  data = iter(text.make(config))
  for _ in range(5):
    next(data)
  state = data.get_state()
  expected = [next(data)["tokens"] for _ in range(7)]
  fresh = iter(text.make(config))
  next(fresh)  # moved elsewhere before
  fresh.set_state(state)
  np.testing.assert_array_equal([next(fresh)["tokens"] for _ in range(7)], expected)


def test_validation_is_spread_over_the_held_out_text(config, folder):
  (folder / "58.txt").write_text("".join(f"{i:07} " for i in range(200)))
  config.data.seq_len = 16
  held = text.windows(text.token_ids(config, "validation"), 16).tolist()
  batches = text.validation(config)
  assert [b["tokens"].shape for b in batches] == [(4, 17)] * 2
  chosen = [held.index(row) for b in batches for row in b["tokens"].tolist()]
  assert chosen[0] == 0 and chosen[-1] == len(held) - 1
  assert {b - a for a, b in itertools.pairwise(chosen)} <= {14, 15}
  assert all(b["mask"].all() for b in batches)
  config.seed = 5
  np.testing.assert_array_equal(text.validation(config)[1]["tokens"], batches[1]["tokens"])


def test_validation_rows_of_all_processes_make_those_of_one(config, monkeypatch):
  whole = text.validation(config)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  shares = []
  for index in range(2):
    monkeypatch.setattr(jax, "process_index", lambda index=index: index)
    shares.append(text.validation(config))
  for batch, *parts in zip(whole, *shares, strict=True):
    assert [p["mask"].shape for p in parts] == [(2, 8)] * 2
    np.testing.assert_array_equal(np.concatenate([p["tokens"] for p in parts]), batch["tokens"])


def test_validation_has_whole_batches_only_and_at_least_one(config):
  rows = len(text.windows(text.token_ids(config, "validation"), 8))
  config.eval_batches = 100
  assert len(text.validation(config)) == rows // 4
  config.batch_size = rows + 1
  with pytest.raises(ConfigError) as error:
    text.validation(config)
  message = one_line(error)
  assert f"holds out {rows} rows of 8 tokens, fewer than batch_size {rows + 1}" in message
