"""Prompts and completions, several in a row: {"tokens": int32[B, T + 1], "mask": bool[B, T],
"segments": int32[B, T + 1]}.

The source is FILE.jsonl with lines {"prompt": str, "completion": str}, or `stdlib`: the signature
and docstring of every documented function of the Python standard library, and its body. Lines may
be conversations instead, {"messages": [...]}: see `chats.py`. Any other source of `text.py` is
documents without prompts, cut into pieces that fill a row.

Rows are packed: segments count the examples of a row from 1, 0 is padding. The mask counts the
targets that belong to a completion, its end of document among them, or with `data.targets = all`
the prompt's too; never the first token of an example, which follows another one. What is longer
than a row is cut at its end, and left out if nothing of its completion remains.
"""

import ast
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import jax
import numpy as np

from distill_jax.config import ConfigError, did_you_mean
from distill_jax.data import chats, text
from distill_jax.data import tokenizer as tokenizer_lib

OPEN = 16  # rows that a further example may still go into


def make(config) -> grain.IterDataset:
  """Shuffled rows without end, this process's share of each batch."""
  count, example = training(config)
  return text.shuffled(config, range(count), example)


def training(config) -> tuple[int, Callable[[int], dict[str, np.ndarray]]]:
  """How many rows the training split has, and (number of a row) -> example."""
  packed = pack(config, "train")
  return len(packed.rows), packed.example


def spec(config) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of one global batch."""
  tokens = text.spec(config)["tokens"]
  return dict(text.spec(config), segments=tokens)


def validation(config) -> list[dict[str, np.ndarray]]:
  """This process's rows of `eval_batches` fixed batches, spread evenly over the held-out rows."""
  packed = pack(config, "validation")
  return text.spread(config, range(len(packed.rows)), packed.example)


class Packed(NamedTuple):
  """The rows of a split: which pieces of the token ids lie in which."""

  ids: np.ndarray  # int32 [N]
  pieces: np.ndarray  # int [P, 3]: begin and end in ids, how many tokens are given, not predicted
  rows: list[list[int]]  # pieces of each row
  size: int  # tokens of a row
  end: int  # the id that pads
  begin: int | None  # the id that the model wants in front of every text

  def example(self, row: int) -> dict[str, np.ndarray]:
    tokens = np.full(self.size, self.end, np.int32)
    segments = np.zeros(self.size, np.int32)
    counts = np.zeros(self.size, bool)
    at = 0
    for number, piece in enumerate(self.rows[row], 1):
      begin, end, given = self.pieces[piece]
      length = end - begin
      tokens[at : at + length] = self.ids[begin:end]
      tokens[at] = tokens[at] if self.begin is None else self.begin
      segments[at : at + length] = number
      counts[at + given : at + length] = True
      at += length
    return dict(tokens=tokens, mask=counts[1:], segments=segments)


def pack(config, split: str) -> Packed:
  """The examples of a split, tokenised and packed."""
  if config.data.targets not in ("completion", "all"):
    raise ConfigError(f"data.targets is 'completion' or 'all', not {config.data.targets!r}.")
  if chats.found(config.data.source):
    prompts, completions = chats.ids(config.data.source, config.data.tokenizer, split)
  else:
    held = [e for e in examples(config) if text.held_out(e[0]) == (split == "validation")]
    prompts, completions = parts(config, [(name, texts) for name, *texts in held], 2)
  size, tokenizer = config.data.seq_len + 1, tokenizer_lib.load(config.data.tokenizer)
  lead = np.array([] if tokenizer.begin is None else [tokenizer.begin], np.int32)
  pieces, ids, at = [], [], 0
  for prompt, completion in zip(prompts, completions, strict=True):
    ids += [lead, prompt[:-1], completion]
    given = len(lead) + len(prompt) - 1
    length = given + len(completion)
    if len(prompt) > 1:
      first = given if config.data.targets == "completion" else 1
      pieces.append((at, at + min(length, size), first))
    else:  # pieces overlap by the token that ends one and is the first input of the next
      pieces += [(at + i, at + min(i + size, length), 1) for i in range(0, length - 1, size - 1)]
    at += length
  pieces = [(begin, end, first) for begin, end, first in pieces if first < end - begin]
  if not pieces:
    raise ConfigError(
      f"data.source {config.data.source!r} has no example for the {split} split whose completion "
      f"begins within data.seq_len {config.data.seq_len}: one in twenty is held out, by its name."
    )
  table = np.array(pieces)
  rows = first_fit(table[:, 1] - table[:, 0], size)
  return Packed(np.concatenate(ids), table, rows, size, tokenizer.end, tokenizer.begin)


def first_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
  """Which items lie in which row of `size`: each goes into the first of the last `OPEN` rows that
  has room for it, or into a new one."""
  rows: list[list[int]] = []
  room: list[int] = []
  for item, length in enumerate(lengths):
    last = range(max(0, len(rows) - OPEN), len(rows))
    row = next((r for r in last if room[r] >= length), None)
    if row is None:
      row = len(rows)
      rows.append([])
      room.append(size)
    rows[row].append(item)
    room[row] -= length
  return rows


def parts(config, held: Sequence[tuple[str, Sequence[str]]], width: int) -> list[list[np.ndarray]]:
  """Token ids of the first texts of all (name, texts), of their second ones, and so on to `width`,
  each with the end of document."""
  texts = [(f"{name}#{i}", content) for name, several in held for i, content in enumerate(several)]
  if not texts:
    return [[] for _ in range(width)]
  ids = text.encoded(config, texts, config.data.tokenizer)
  ends = np.flatnonzero(ids == tokenizer_lib.load(config.data.tokenizer).end) + 1
  split = np.split(ids, ends[:-1])
  return [split[i::width] for i in range(width)]


def examples(config) -> Sequence[tuple[str, str, str]]:
  """(name, prompt, completion) of a source, in a fixed order; the name decides the split."""
  source = config.data.source
  if source == "stdlib":
    return functions()
  if source.endswith(".jsonl"):
    lines = records(source, ("prompt", "completion"))
    return [(str(number), prompt, completion) for number, (prompt, completion) in lines]
  return [(name, "", content) for name, content in text.documents(source, config.data.field)]


def records(path: str, fields: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
  """Line number and the texts `fields` of every line of a jsonl file that is not empty."""
  for number, record in text.json_lines(path):
    for field in fields:
      if not isinstance(record.get(field), str):
        raise ConfigError(f"{path}:{number}: no text {field!r}." + did_you_mean(field, record))
    yield number, tuple(record[field] for field in fields)


@functools.cache
def functions() -> tuple[tuple[str, str, str], ...]:
  """(file, signature and docstring, body) of the standard library's documented functions, and of
  its methods."""
  found = []
  for name, source in text.documents("stdlib", "text"):
    try:
      with warnings.catch_warnings(action="ignore"):  # of escapes in old string literals
        tree = ast.parse(source)
    except SyntaxError:  # templates, and files for other versions
      continue
    lines = source.splitlines(keepends=True)
    for node in ast.walk(tree):
      if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
        continue
      if ast.get_docstring(node, clean=False) is None:
        continue
      middle = node.body[0].end_lineno
      prompt = "".join(lines[node.lineno - 1 : middle])
      found.append((name, prompt, "".join(lines[middle : node.end_lineno])))
  return tuple(found)
