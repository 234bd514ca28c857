"""The same text in the tokens of a student and of a teacher, with the chunks that both spell.

  tokens          int32[B, T + 1]  by data.tokenizer          mask          bool[B, T]
  teacher_tokens  int32[B, S + 1]  by data.teacher_tokenizer  teacher_mask  bool[B, S]
  chunks          int32[B, T]      the chunk that a target belongs to, from 0 in each row
  teacher_chunks  int32[B, S]      the same for the teacher; T where there is none

T is data.seq_len and S data.teacher_seq_len. A chunk is the text between two places where both
tokenizers have a boundary, as short as can be: it is a whole number of tokens for both. Boundaries
are found by counting bytes, so both tokenizers must spell every document byte for byte. A row is as
many chunks as fit for both; the first of them, the last of the row before, is read but not
predicted. What is left of a row is padding, which the masks leave out.
"""

from typing import NamedTuple

import grain
import jax
import numpy as np

from distill_jax.config import ConfigError
from distill_jax.data import text, tokenizer


def make(config) -> grain.IterDataset:
  """Shuffled rows without end, this process's share of each batch."""
  aligned = align(config, "train")
  return text.shuffled(config, range(len(aligned.rows)), aligned.example)


def spec(config) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of one global batch."""
  shapes = {}
  lengths = dict(tokens=config.data.seq_len, teacher_tokens=config.data.teacher_seq_len)
  for name, length in lengths.items():
    other = name.removesuffix("tokens")
    shapes[name] = jax.ShapeDtypeStruct((config.batch_size, length + 1), np.int32)
    shapes[f"{other}mask"] = jax.ShapeDtypeStruct((config.batch_size, length), np.bool_)
    shapes[f"{other}chunks"] = jax.ShapeDtypeStruct((config.batch_size, length), np.int32)
  return shapes


def validation(config) -> list[dict[str, np.ndarray]]:
  """This process's rows of `eval_batches` fixed batches, spread evenly over the held-out rows."""
  aligned = align(config, "validation")
  return text.spread(config, range(len(aligned.rows)), aligned.example)


class Side(NamedTuple):
  """A text in one tokenizer's tokens."""

  ids: np.ndarray  # int32 [N]
  sizes: np.ndarray  # [V] bytes that a token stands for; 1 for the end of a document
  length: int  # targets in a row
  end: int
  begin: int | None  # what the model wants in front of every text: the first of each row

  def part(self, begin: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [length + 1] from begin to stop, and the byte where each ends, -1 for padding."""
    ids = self.ids[begin:stop]
    tokens = np.full(self.length + 1, self.end, np.int32)
    tokens[: len(ids)] = ids
    tokens[0] = tokens[0] if self.begin is None else self.begin
    ends = np.full(self.length + 1, -1)
    ends[: len(ids)] = np.cumsum(self.sizes[ids])
    return tokens, ends


class Aligned(NamedTuple):
  student: Side
  teacher: Side
  rows: np.ndarray  # int [R, 4]: begin and stop in the student's ids and in the teacher's

  def example(self, row: int) -> dict[str, np.ndarray]:
    a, b, c, d = self.rows[row]
    (tokens, ends), (teacher_tokens, teacher_ends) = (
      self.student.part(a, b),
      self.teacher.part(c, d),
    )
    common = np.intersect1d(ends, teacher_ends)
    common = common[common >= 0]  # where chunks end, the first of them without targets

    def numbers(ends):
      chunk = np.searchsorted(common, ends[1:]) - 1
      counts = (ends[1:] >= 0) & (chunk >= 0)
      return np.where(counts, chunk, self.student.length).astype(np.int32), counts

    chunks, mask = numbers(ends)
    teacher_chunks, teacher_mask = numbers(teacher_ends)
    return dict(
      tokens=tokens,
      mask=mask,
      chunks=chunks,
      teacher_tokens=teacher_tokens,
      teacher_mask=teacher_mask,
      teacher_chunks=teacher_chunks,
    )


def align(config, split: str) -> Aligned:
  """Rows of a split."""
  if not config.data.teacher_tokenizer:
    raise ConfigError("data.teacher_tokenizer is empty: name the teacher's tokenizer.")
  names = (config.data.tokenizer, config.data.teacher_tokenizer)
  lengths = (config.data.seq_len, config.data.teacher_seq_len)
  sides = []
  for name, length in zip(names, lengths, strict=True):
    tokens = tokenizer.load(name)
    sizes = tokens.token_bytes.copy()
    sizes[tokens.end] = 1
    sides.append(Side(text.token_ids(config, split, name), sizes, length, tokens.end, tokens.begin))
  ends = [np.cumsum(side.sizes[side.ids]) for side in sides]
  if ends[0][-1] != ends[1][-1]:
    raise ConfigError(
      f"data.tokenizer {names[0]!r} spells the text in {ends[0][-1]:,} bytes, "
      f"data.teacher_tokenizer {names[1]!r} in {ends[1][-1]:,}: both must spell it byte for byte."
    )
  # tokens before each common boundary, on both sides; nothing lies before the first
  few, many = sorted(ends, key=len)
  found = np.minimum(np.searchsorted(many, few), len(many) - 1)
  common = np.unique(few[many[found] == few])
  places = [np.append(0, np.searchsorted(e, common, side="right")) for e in ends]
  rows = _rows(places, lengths)
  if not len(rows):
    raise ConfigError(
      f"The {split} split of data.source {config.data.source!r} fills no row of {lengths[0]} "
      f"student's and {lengths[1]} teacher's tokens: give more text, or longer rows."
    )
  return Aligned(sides[0], sides[1], rows)


def _rows(places: list[np.ndarray], lengths: tuple[int, ...]) -> np.ndarray:
  """As many chunks as fit into each row, beginning with the last of the row before."""
  rows, chunk, chunks = [], 0, len(places[0]) - 1
  while chunk < chunks:
    stops = [
      int(np.searchsorted(p, p[chunk] + length + 1, side="right")) - 1
      for p, length in zip(places, lengths, strict=True)
    ]
    stop = min(stops)
    if stop < chunk + 2:  # no room for a chunk to read and one to predict: passed over
      chunk += 1
      continue
    rows.append([x for p in places for x in (p[chunk], p[stop])])
    chunk = stop - 1 if stop < chunks else stop
  return np.array(rows, np.int64).reshape(-1, 4)


def word_starts(name: str) -> np.ndarray:
  """Which tokens of a tokenizer begin a new word: those of white space, or the end. bool[V]"""
  tokens = tokenizer.load(name)
  starts = np.array([tokens.decode([i])[:1].isspace() for i in range(tokens.vocab_size)])
  starts[tokens.end] = True
  return starts


def shared_ids(student: str, teacher: str) -> tuple[np.ndarray, np.ndarray]:
  """The ids of the tokens that two tokenizers write alike, and of their ends: int32[K] of each."""
  first, second = tokenizer.load(student), tokenizer.load(teacher)

  def texts(tokens):
    known = {tokens.decode([i]): i for i in range(tokens.vocab_size) if i != tokens.end}
    return {text: i for text, i in known.items() if text and "\ufffd" not in text}

  theirs = texts(second)
  pairs = [(i, theirs[text]) for text, i in texts(first).items() if text in theirs]
  return tuple(np.array([*pairs, (first.end, second.end)], np.int32).T)
