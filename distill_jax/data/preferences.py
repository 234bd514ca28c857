"""Prompts with a chosen and a rejected answer: {"tokens": int32[B, 2, T + 1], "mask": bool[B, 2,
T]}, the chosen one first.

The source is FILE.jsonl with lines {"prompt": str, "chosen": str, "rejected": str}, or `stdlib`:
the signature and docstring of a function of the Python standard library, its body, and the body of
another function. The mask counts the tokens of the answers and the end after them. What is longer
than a row is cut at its end; a pair whose prompt fills the row is left out.
"""

from collections.abc import Sequence

import grain
import jax
import numpy as np

from distill_jax.config import ConfigError
from distill_jax.data import completions, text
from distill_jax.data import tokenizer as tokenizer_lib


def make(config) -> grain.IterDataset:
  """Shuffled pairs without end, this process's share of each batch."""
  tokens, mask = rows(config, "train")
  return text.shuffled(config, range(len(tokens)), lambda i: dict(tokens=tokens[i], mask=mask[i]))


def spec(config) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of one global batch."""
  b, t = config.batch_size, config.data.seq_len
  return dict(
    tokens=jax.ShapeDtypeStruct((b, 2, t + 1), np.int32),
    mask=jax.ShapeDtypeStruct((b, 2, t), np.bool_),
  )


def validation(config) -> list[dict[str, np.ndarray]]:
  """This process's rows of `eval_batches` fixed batches of chosen answers alone, [B, T + 1] and [B,
  T], spread evenly over the held-out pairs."""
  tokens, mask = rows(config, "validation")
  return text.spread(
    config, range(len(tokens)), lambda i: dict(tokens=tokens[i][0], mask=mask[i][0])
  )


def rows(config, split: str) -> tuple[np.ndarray, np.ndarray]:
  """The pairs of a split: int32[N, 2, T + 1] and bool[N, 2, T]."""
  held = [p for p in pairs(config, split) if text.held_out(p[0]) == (split == "validation")]
  parts = completions.parts(config, [(name, texts) for name, *texts in held], 3)
  size, tokenizer = config.data.seq_len + 1, tokenizer_lib.load(config.data.tokenizer)
  lead = np.array([] if tokenizer.begin is None else [tokenizer.begin], np.int32)
  tokens = np.full((len(held), 2, size), tokenizer.end, np.int32)
  counts = np.zeros((len(held), 2, size), bool)
  for row, (prompt, *answers) in enumerate(zip(*parts, strict=True)):
    given = len(lead) + len(prompt) - 1
    for side, answer in enumerate(answers):
      ids = np.concatenate([lead, prompt[:-1], answer])[:size]
      tokens[row, side, : len(ids)] = ids
      counts[row, side, max(given, 1) : len(ids)] = True
  mask = counts[..., 1:]
  fits = mask.any(-1).all(-1)
  if not fits.any():
    raise ConfigError(
      f"data.source {config.data.source!r} has no pair for the {split} split whose answers begin "
      f"within data.seq_len {config.data.seq_len}: one in twenty is held out, by its name."
    )
  return tokens[fits], mask[fits]


def pairs(config, split: str) -> Sequence[tuple[str, str, str, str]]:
  """(name, prompt, chosen, rejected) of a source, in a fixed order; the name decides the split."""
  source = config.data.source
  if source != "stdlib":
    lines = completions.records(source, ("prompt", "chosen", "rejected"))
    return [(str(number), prompt, good, bad) for number, (prompt, good, bad) in lines]
  # another function of the same split, so that no held-out body is seen in training
  own = [f for f in completions.functions() if text.held_out(f[0]) == (split == "validation")]
  others = own[len(own) // 2 :] + own[: len(own) // 2]
  return [
    (name, prompt, body, other)
    for (name, prompt, body), (_, _, other) in zip(own, others, strict=True)
    if body != other
  ]
