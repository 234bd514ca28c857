"""The rows of `text.py` or `completions.py` (data.cache.of) with what a teacher thinks of them:
their own arrays, and

  teacher_ids        int32 [B, T, K]
  teacher_log_probs  float32 [B, T, K], the likeliest first         (data.cache.kind = top_k)
  teacher_weights    float32 [B, T, K], summing to 1, 0 for no id   (sampled)
  teacher_hidden     [B, T, D], the last hidden states              (data.cache.hidden)

Under one seed the order is that of the rows' own module, if the cache holds all rows. A cache that
is missing, or not whole, is written first, by `distill_jax/cache.py`. One of another teacher,
tokenizer, text or form is refused.
"""

import functools
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np

from distill_jax import cache as writer
from distill_jax.config import ConfigError
from distill_jax.data import manifest, signals, text


def make(config) -> grain.IterDataset:
  """Shuffled rows without end, this process's share of each batch."""
  cache = manifest.of(config)
  if not (manifest.check(cache) and all(file.exists() for file in cache.files)):
    if jax.process_count() > 1:
      raise ConfigError(f"{cache.folder} is no whole cache: run python -m distill_jax.cache first.")
    print(f"The teacher's view of {cache.rows:,} rows goes to {cache.folder}", flush=True)
    writer.write(config, cache)
  return text.shuffled(config, range(cache.rows), reader(cache))


def spec(config) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of one global batch."""
  fields = signals.arrays(manifest.layout(config))
  return manifest.source(config).spec(config) | {
    name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)
    for name, (shape, dtype) in fields.items()
  }


def validation(config) -> list[dict[str, np.ndarray]]:
  """Held-out rows: no signals are kept of them."""
  return manifest.source(config).validation(config)


def reader(cache: manifest.Cache) -> Callable[[int], dict[str, np.ndarray]]:
  """(number of a row) -> the row and its signals; ConfigError if its shard or record is damaged."""
  from array_record.python.array_record_module import ArrayRecordReader

  size, total = cache.fields["rows_per_shard"], cache.rows

  @functools.lru_cache(64)
  def shard(index: int) -> Any:
    # a record is read alone, none ahead of it
    opened = ArrayRecordReader(str(cache.files[index]), "readahead_buffer_size:0,max_parallelism:0")
    count = min(size, total - index * size)
    if not opened.ok() or opened.num_records() != count:
      raise ValueError(f"it has {opened.num_records()} records, not {count}")
    return opened

  def example(number: int) -> dict[str, np.ndarray]:
    index, place = divmod(number, size)
    try:
      found = signals.decode(cache.layout, shard(index).read([place])[0])
    except (RuntimeError, ValueError) as error:
      reason = str(error).partition(";")[0]
      raise ConfigError(
        f"{cache.files[index]}, record {place}: {reason}. Delete the file, to write it anew."
      ) from None
    return cache.example(number) | found

  return example
