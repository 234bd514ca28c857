"""What a cache of teacher signals is made of: its rows, its files, and `manifest.json`, which a
reader compares with the config that it serves."""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from distill_jax.config import ConfigError
from distill_jax.data import completions, signals, text, tokenizer
from distill_jax.models import pretrained as pretrained_lib
from distill_jax.models import student as student_lib

FORMAT = 1
SOURCES = dict(text=text, completions=completions)  # data.cache.of
KEYS = ("kind", "k", "bits", "hidden", "rows", "rows_per_shard")  # of data.cache
REMEDIES = dict(
  format="it is of another version of distill_jax",
  vocabulary="set data.tokenizer to the one that wrote it",
  seq_len="set data.seq_len={found}",
  width="name the teacher that wrote it in pretrained.teacher",
  weights="name the teacher that wrote it in pretrained.teacher (random weights follow seed)",
  architecture="name the teacher that wrote it in pretrained.teacher, or set models.teacher",
  dtype="set models.teacher.dtype and models.teacher.param_dtype",
  tokenizer="set data.tokenizer to the one that wrote it",
  data="the rows are others, set data.source, data.field and data.cache.of",
) | {key: f"set data.cache.{key}={{found}}" for key in KEYS}


class Cache(NamedTuple):
  """The cache that belongs to a config, written or not."""

  folder: pathlib.Path
  fields: dict[str, Any]  # of the manifest
  layout: signals.Layout  # of a record
  rows: int  # how many
  example: Callable[[int], dict[str, np.ndarray]]  # (number of a row) -> tokens, mask, ...
  files: list[pathlib.Path]  # shards of `rows_per_shard` records each, the last one of what is left


def of(config) -> Cache:
  """The cache of a config: in the folder that `data.cache.folder` names, or in one of `cache_dir`
  that is found by the manifest. Its rows are those of `data.cache.of`, all or `data.cache.rows` of
  them.

  Raises:
    ConfigError: a key of data.cache is out of range, or what the config names is not there.
  """
  cache, form = config.data.cache, layout(config)
  count, of_source = source(config).training(config)
  rows = np.linspace(0, count - 1, min(cache.rows or count, count)).astype(int)

  def example(number):
    return of_source(rows[number])

  arch = pretrained_lib.architecture(config, "teacher")
  given = {key: value for key, value in arch.items() if key not in pretrained_lib.RUN_KEYS}
  fields = dict(
    format=FORMAT,
    **form._asdict(),
    rows=len(rows),
    rows_per_shard=cache.rows_per_shard,
    bytes_per_token=signals.size(form) / form.seq_len,
    weights=_weights_digest(config),
    architecture=hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest(),
    dtype=f"{arch.dtype}, parameters {arch.param_dtype}",
    tokenizer=hashlib.sha256(
      tokenizer.load(config.data.tokenizer).fingerprint.encode()
    ).hexdigest(),
    data=_rows_digest(len(rows), example),
  )
  if cache.folder:
    folder = pathlib.Path(cache.folder)
  else:
    name = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]
    folder = pathlib.Path(config.cache_dir) / "teacher" / name
  folder = folder.expanduser()
  shards = -(-len(rows) // cache.rows_per_shard)
  files = [folder / f"{i:05}.arrayrecord" for i in range(shards)]
  return Cache(folder, fields, form, len(rows), example, files)


def source(config) -> Any:
  """The module whose rows a teacher looks at.

  Raises:
    ConfigError: `data.cache.of` is none of them.
  """
  if config.data.cache.of not in SOURCES:
    raise ConfigError(f"data.cache.of {config.data.cache.of!r} is not {' or '.join(SOURCES)}.")
  return SOURCES[config.data.cache.of]


def check(cache: Cache) -> bool:
  """Whether the folder has a manifest.

  Raises:
    ConfigError: it is damaged, or that of something else; the first field that differs is named.
  """
  file = cache.folder / "manifest.json"
  try:
    found = json.loads(file.read_text())
    if not isinstance(found, dict):
      raise ValueError("no object")
  except FileNotFoundError:
    return False
  except ValueError as error:
    raise ConfigError(
      f"{file} is damaged ({error}): delete the folder, to write it anew."
    ) from None
  for name, value in cache.fields.items():
    if found.get(name) != value:
      remedy = REMEDIES.get(name, "it is damaged").format(found=found.get(name))
      raise ConfigError(
        f"{file}: {name} is {found.get(name)!r}, but {value!r} for this config: {remedy}, or name "
        "another data.cache.folder."
      )
  return True


def layout(config) -> signals.Layout:
  """How the records of a config are coded."""
  cache, vocabulary = config.data.cache, student_lib.model(config, "teacher").vocabulary
  if cache.kind not in signals.KINDS:
    raise ConfigError(f"data.cache.kind {cache.kind!r} is not one of {', '.join(signals.KINDS)}.")
  if cache.hidden not in signals.DTYPES:
    raise ConfigError(f"data.cache.hidden {cache.hidden!r} is not '', float16 or bfloat16.")
  if not 1 <= cache.k <= vocabulary:
    raise ConfigError(f"data.cache.k {cache.k} is not between 1 and the vocabulary, {vocabulary}.")
  if not 2 <= cache.bits <= signals.MOST_BITS:
    raise ConfigError(f"data.cache.bits {cache.bits} is not between 2 and {signals.MOST_BITS}.")
  if cache.rows_per_shard < 1 or cache.rows < 0:
    raise ConfigError("data.cache.rows_per_shard is at least 1, data.cache.rows at least 0.")
  width = pretrained_lib.architecture(config, "teacher").width if cache.hidden else 0
  return signals.Layout(
    cache.kind, cache.k, cache.bits, vocabulary, config.data.seq_len, cache.hidden, width
  )


def _weights_digest(config) -> str:
  digest = hashlib.sha256()
  if not config.pretrained.teacher:
    digest.update(f"random weights of seed {config.seed}".encode())
    return digest.hexdigest()
  found = pretrained_lib.folder(config.pretrained.teacher)
  for file in [found] if found.is_file() else sorted(found.glob("*.safetensors")):
    with file.open("rb") as data:
      digest.update(hashlib.file_digest(data, "sha256").digest())
  return digest.hexdigest()


def _rows_digest(count: int, example: Callable[[int], dict[str, np.ndarray]]) -> str:
  """Of all that a teacher sees of the rows: tokens and segments, not which targets count."""
  digest = hashlib.sha256()
  for number in range(count):
    row = example(number)
    for name in sorted(row.keys() - {"mask"}):
      digest.update(np.asarray(row[name], "<i4").tobytes())
  return digest.hexdigest()
