"""Text as rows of tokens: {"tokens": int32[B, T + 1], "mask": bool[B, T]}.

The mask says which targets count.
The source is `stdlib` (the Python standard library's own source, on every machine), a text file, a
folder, or `tfds:NAME`. Documents whose name hashes to one in twenty are held out for validation,
the same ones on every machine. Token ids are kept in the cache directory, so a second run starts at
once.
"""

import hashlib
import json
import os
import pathlib
import sysconfig
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from distill_jax.config import ConfigError
from distill_jax.data import tokenizer as tokenizer_lib

SUFFIXES = {
  ".py",
  ".txt",
  ".md",
  ".rst",
  ".json",
  ".tex",
  ".html",
  ".c",
  ".h",
  ".cc",
  ".js",
  ".jsonl",
}
BLOCK = 1 << 14  # characters; a source of one document is cut into blocks of whole lines


def make(config) -> grain.IterDataset:
  """Shuffled rows without end, this process's share of each batch."""
  count, example = training(config)
  return shuffled(config, range(count), example)


def shuffled(config, rows: Any, example: Callable) -> grain.IterDataset:
  """`example(row)` of the rows in an order that the seed gives, without end, in batches; this
  process's share of each."""
  local, ragged = divmod(config.batch_size, jax.process_count())
  if ragged:
    raise ConfigError(
      f"batch_size {config.batch_size} does not split over {jax.process_count()} processes."
    )
  dataset = grain.MapDataset.source(rows).seed(config.seed).shuffle().repeat().map(example)
  # Consecutive local batches are the consecutive row blocks of one global batch. There is no
  # remainder; asked to keep it, grain rounds the length of an endless dataset past an int64.
  local_batches = dataset.batch(local, drop_remainder=True)
  dataset = local_batches[jax.process_index() :: jax.process_count()]
  return dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))


def training(config) -> tuple[int, Callable[[int], dict[str, np.ndarray]]]:
  """How many rows the training split has, and (number of a row) -> example."""
  windows = rows(config, "train")
  return len(windows), lambda number: example(windows[number])


def spec(config) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of one global batch."""
  b, t = config.batch_size, config.data.seq_len
  return dict(
    tokens=jax.ShapeDtypeStruct((b, t + 1), np.int32), mask=jax.ShapeDtypeStruct((b, t), np.bool_)
  )


def validation(config) -> list[dict[str, np.ndarray]]:
  """This process's rows of `eval_batches` fixed batches, spread evenly over the held-out text."""
  return spread(config, rows(config, "validation"), example)


def spread(config, rows: Any, example: Callable) -> list[dict[str, np.ndarray]]:
  """`eval_batches` batches of `example(row)`, the rows spread evenly over those that are held out;
  this process's share of each."""
  count = min(len(rows), config.eval_batches * config.batch_size) // config.batch_size
  if count == 0:
    raise ConfigError(
      f"data.source {config.data.source!r} holds out {len(rows)} rows of {config.data.seq_len} "
      f"tokens, fewer than batch_size {config.batch_size}: give more text, or a smaller batch_size "
      "or data.seq_len."
    )
  chosen = np.linspace(0, len(rows) - 1, count * config.batch_size).astype(int)
  # [batches, processes, rows of each]
  chosen = chosen.reshape(count, jax.process_count(), -1)[:, jax.process_index()]
  batches = [[example(rows[i]) for i in batch] for batch in chosen]
  return [{k: np.stack([e[k] for e in batch]) for k in batch[0]} for batch in batches]


def example(row: np.ndarray) -> dict[str, np.ndarray]:
  return dict(tokens=np.asarray(row, np.int32), mask=np.ones(len(row) - 1, bool))


def rows(config, split: str) -> np.ndarray:
  """The windows of a split, see `begun`."""
  return begun(config, windows(token_ids(config, split), config.data.seq_len))


def begun(config, rows: np.ndarray) -> np.ndarray:
  """Where the tokenizer has a token that begins a text, it is the first of each row, for models
  that never saw a text without it."""
  begin = tokenizer_lib.load(config.data.tokenizer).begin
  if begin is None:
    return rows
  rows = np.array(rows)
  rows[:, 0] = begin
  return rows


def windows(ids: np.ndarray, seq_len: int) -> np.ndarray:
  """Rows of seq_len + 1 tokens, each beginning with the last token of the one before. [N, seq_len +
  1]"""
  count = (len(ids) - 1) // seq_len
  if count == 0:
    raise ConfigError(f"The text has {len(ids)} tokens, not enough for one row of {seq_len + 1}.")
  return np.lib.stride_tricks.as_strided(
    ids, (count, seq_len + 1), (seq_len * ids.itemsize, ids.itemsize), writeable=False
  )


def token_ids(config, split: str, tokenizer: str = "") -> np.ndarray:
  """All token ids of a split, from the cache or tokenised now, by data.tokenizer or another one.
  int32 [N], memory mapped."""
  texts = [
    (name, text)
    for name, text in documents(config.data.source, config.data.field)
    if held_out(name) == (split == "validation")
  ]
  if not texts:
    raise ConfigError(
      f"data.source {config.data.source!r} has no text for the {split} split: one document in "
      f"twenty is held out, by its name, and a single file is cut every {BLOCK:,} characters. Give "
      "more text."
    )
  return encoded(config, texts, tokenizer or config.data.tokenizer)


def encoded(config, texts: Sequence[tuple[str, str]], name: str) -> np.ndarray:
  """The token ids of (name, text) documents, each with its end, by the tokenizer `name`; from the
  cache or tokenised now. int32 [N], memory mapped."""
  tokenizer = tokenizer_lib.load(name)
  digest = hashlib.sha256(tokenizer.fingerprint.encode())
  for document, text in texts:
    digest.update(f"{document}\0{len(text)}\0{zlib.crc32(text.encode())}\0".encode())
  folder = pathlib.Path(config.cache_dir).expanduser() / "tokens"
  cached = folder / f"{digest.hexdigest()[:32]}.npy"
  try:
    return np.load(cached, mmap_mode="r")
  except (FileNotFoundError, ValueError, EOFError):  # absent, or damaged
    pass
  folder.mkdir(parents=True, exist_ok=True)
  end = np.array([tokenizer.end], np.int32)
  ids = np.concatenate([x for e in tokenizer.encode([t for _, t in texts]) for x in (e, end)])
  with tempfile.NamedTemporaryFile(dir=folder, suffix=".npy", delete=False) as file:
    np.save(file, ids)
  os.replace(file.name, cached)  # whole or absent, also when several processes tokenise at once
  return np.load(cached, mmap_mode="r")


def json_lines(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  """Line number and object of every line of a jsonl file that is not empty; {} for what is none."""
  file = pathlib.Path(path).expanduser()
  if not file.is_file():
    raise ConfigError(f"data.source {path!r}: there is no such file.")
  with file.open(encoding="utf-8") as lines:
    for number, line in enumerate(lines, 1):
      if not line.strip():
        continue
      try:
        record = json.loads(line)
      except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{number}: not JSON: {error}.") from None
      yield number, record if isinstance(record, dict) else {}


def held_out(name: str) -> bool:
  """Whether a document belongs to the validation split."""
  return zlib.crc32(name.encode()) % 20 == 0


def documents(source: str, field: str) -> Iterator[tuple[str, str]]:
  """(name, text) of every document of a source, in a fixed order."""
  if source.startswith("tfds:"):
    yield from _tfds(source.removeprefix("tfds:"), field)
    return
  root = pathlib.Path(
    sysconfig.get_paths()["stdlib"] if source == "stdlib" else source
  ).expanduser()
  if root.is_file():
    yield from _blocks(_read(root))
    return
  if not root.is_dir():
    raise ConfigError(f"data.source {source!r} is not 'stdlib', 'tfds:NAME', a file or a folder.")
  if source == "stdlib":
    skip = {"test", "tests", "site-packages", "dist-packages", "idle_test", "lib2to3", "pydoc_data"}
    suffixes = {".py"}
  else:
    skip, suffixes = set(), SUFFIXES
  files = []
  for parent, folders, names in os.walk(root):
    folders[:] = set(folders) - skip  # os.walk does not enter the others
    files += [pathlib.Path(parent, name) for name in names]
  for file in sorted(f for f in files if f.suffix in suffixes and f.is_file()):
    yield file.relative_to(root).as_posix(), _read(file)


def _read(file: pathlib.Path) -> str:
  return file.read_text(encoding="utf-8", errors="replace")


def _blocks(text: str) -> Iterator[tuple[str, str]]:
  block: list[str] = []
  size = count = 0
  for line in text.splitlines(keepends=True):
    block.append(line)
    size += len(line)
    if size >= BLOCK:
      yield str(count), "".join(block)
      block, size, count = [], 0, count + 1
  if block:
    yield str(count), "".join(block)


def _tfds(name: str, field: str) -> Iterator[tuple[str, str]]:
  try:
    import tensorflow_datasets as tfds
  except ImportError:
    raise ConfigError("data.source 'tfds:...' needs: pip install 'distill_jax[data]'.") from None
  try:
    examples = tfds.data_source(name, split="train")
  except Exception as error:  # of many kinds: no such name, no network, another file format
    reason = str(error).partition("\n")[0]
    raise ConfigError(f"data.source 'tfds:{name}': {type(error).__name__}: {reason}") from error
  for i, example in enumerate(examples):
    if not isinstance(example.get(field), bytes):
      texts = sorted(key for key, value in example.items() if isinstance(value, bytes))
      raise ConfigError(f"data.field {field!r}: the texts in {name} are {', '.join(texts)}.")
    yield str(i), example[field].decode(errors="replace")
