"""One row of text of each domain for every row of a batch: {"tokens": int32[B, N, T + 1], "mask":
bool[B, N, T]}. A method chooses which of the N domains a row comes from.

A domain is a folder of the source: the `data.domains` - 1 folders with the most held-out text, and
all the rest as `other`. Files beside the folders are the domain `.`. A row is the next of its
domain, whether the one before it was chosen or not; each domain begins again at its end.
"""

from collections import Counter

import grain
import jax
import numpy as np

from distill_jax.config import ConfigError
from distill_jax.data import text


def make(config) -> grain.IterDataset:
  """Shuffled rows without end, this process's share of each batch."""
  domains = list(rows(config, "train").values())

  def example(i):
    tokens = np.stack([np.asarray(d[i % len(d)], np.int32) for d in domains])
    return dict(tokens=tokens, mask=np.ones((len(domains), config.data.seq_len), bool))

  return text.shuffled(config, range(max(map(len, domains))), example)


def spec(config) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of one global batch."""
  b, n, t = config.batch_size, config.data.domains, config.data.seq_len
  return dict(
    tokens=jax.ShapeDtypeStruct((b, n, t + 1), np.int32),
    mask=jax.ShapeDtypeStruct((b, n, t), np.bool_),
  )


def validation(config) -> list[dict[str, np.ndarray]]:
  """Rows of all domains, [B, T + 1] and [B, T], as those of data/text.py."""
  return text.validation(config)


def held_out(config, count: int) -> np.ndarray:
  """`count` rows of every domain, spread evenly over its held-out text: int32[N, count, T + 1]."""
  chosen = []
  for name, domain in rows(config, "validation").items():
    if len(domain) < count:
      raise ConfigError(
        f"The domain {name!r} holds out {len(domain)} rows of {config.data.seq_len} tokens, fewer "
        f"than {count}: set data.domains below {config.data.domains}, or give more text."
      )
    chosen.append(domain[np.linspace(0, len(domain) - 1, count).astype(int)])
  return np.stack(chosen)


def rows(config, split: str) -> dict[str, np.ndarray]:
  """Rows of every domain of a split, [rows, T + 1] each; the domains in alphabetical order, `other`
  last."""
  documents = list(text.documents(config.data.source, config.data.field))
  sizes: Counter[str] = Counter()
  for name, content in documents:
    sizes[_folder(name)] += len(content) if text.held_out(name) else 0
  if not 2 <= config.data.domains <= len(sizes):
    raise ConfigError(
      f"data.domains is {config.data.domains}, data.source {config.data.source!r} has "
      f"{len(sizes)} folders: give 2 to as many as there are."
    )
  named = sorted(name for name, _ in sizes.most_common(config.data.domains - 1))
  texts: dict[str, list[tuple[str, str]]] = {name: [] for name in (*named, "other")}
  for name, content in documents:
    if text.held_out(name) == (split == "validation"):
      texts[_folder(name) if _folder(name) in texts else "other"].append((name, content))
  for name, several in texts.items():
    if not several:
      raise ConfigError(f"The domain {name!r} has no text for the {split} split: give more text.")
  found = {}
  for name, several in texts.items():
    ids = text.encoded(config, several, config.data.tokenizer)
    found[name] = text.begun(config, text.windows(ids, config.data.seq_len))
  return found


def _folder(name: str) -> str:
  return name.partition("/")[0] if "/" in name else "."
