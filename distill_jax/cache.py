"""Runs a teacher over the training rows once and keeps what it thinks of every token.

  python -m distill_jax.cache --config experiments/llm/cached_kd.py[:arg] [--out FOLDER]
  [--process 0 --processes 4] [--config.key=value ...]

The folder holds `manifest.json` (what the signals are made of: `data/manifest.py`) and shards
`00000.arrayrecord`, ..., each with a record per row (`data/signals.py`). A shard is there whole or
not at all: an interrupted writer goes on with those that are missing, and ends in the same bytes.
Several processes, on any machines that share the folder, write every n-th shard each.
"""

import argparse
import contextlib
import json
import os
import pathlib
import sys
import time
import uuid
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from distill_jax.config import ConfigError
from distill_jax.data import manifest, signals
from distill_jax.losses.log_probs import log_softmax
from distill_jax.mesh import make_mesh, put_batch, shardings
from distill_jax.models import pretrained as pretrained_lib
from distill_jax.models import student as student_lib
from distill_jax.report import Bar


def write(config, cache: manifest.Cache, process: int = 0, processes: int = 1) -> None:
  """Writes the shards that are missing; of several processes each takes every n-th.

  Raises:
    ConfigError: the folder holds the cache of something else.
  """
  cache.folder.mkdir(parents=True, exist_ok=True)
  if not manifest.check(cache):
    with published(cache.folder / "manifest.json") as temporary:
      temporary.write_text(json.dumps(cache.fields, indent=2) + "\n")
  ours = cache.files[process::processes]
  missing = [file for file in ours if not file.exists()]
  size, kept = cache.fields["rows_per_shard"], len(ours) - len(missing)
  mesh = jax.sharding.get_mesh()
  mesh = make_mesh(config.mesh, jax.local_devices()) if mesh.empty else mesh
  split = mesh.shape["data"] * mesh.shape["fsdp"]
  if config.batch_size % split:
    raise ConfigError(f"batch_size {config.batch_size} does not split over {split} devices.")
  bar = Bar(f"cache {cache.folder.name[:8]}", kept, len(ours))
  with jax.set_mesh(mesh), bar.progress:
    look = teacher(config, cache.layout, mesh) if missing else None
    begun, tokens = time.monotonic(), 0
    for done, file in enumerate(missing, 1):
      first = int(file.stem) * size
      rows = range(first, min(first + size, cache.rows))
      _write_shard(file, cache.layout, _look_at(config, look, cache, rows, mesh))
      tokens += len(rows) * cache.layout.seq_len
      seconds = time.monotonic() - begun
      text = f"{tokens / seconds:,.0f} tokens/s"
      bar.progress.update(bar.task, completed=kept + done, text=text)
      if not bar.console.is_terminal:
        left = f"{seconds / done * (len(missing) - done):.0f} s left"
        line = f"{bar.title}  shard {kept + done}/{len(ours)}  {text}  {left}"
        bar.console.print(line, soft_wrap=True)


def teacher(config, layout: signals.Layout, mesh: Mesh) -> Callable:
  """(tokens [B, T + 1] of a batch, and segments; numbers [B] of its rows) -> ids [B, T, K], their
  log-probabilities or None, hidden states or None. Logits exist for `divergence.chunk` tokens at a
  time."""
  model, path = student_lib.model(config, "teacher"), config.pretrained.teacher
  init, rules = student_lib.init(config, optax.identity()), config.sharding.frozen
  loaded = dict(teacher=pretrained_lib.load(path)) if path else {}

  def start(key, loaded):
    return init(key, loaded)[1]

  key = jax.random.split(jax.random.key(config.seed))[0]  # random weights are those of training
  lay = shardings(jax.eval_shape(start, key, loaded), rules, mesh)
  loaded = pretrained_lib.put(loaded, shardings(loaded, rules, mesh))
  frozen = jax.jit(start, out_shardings=lay)(key, loaded)
  length = layout.seq_len
  width = min(length, max(1, config.divergence.chunk // config.batch_size))  # tokens of each row
  steps = -(-length // width)

  @jax.jit
  def look(params, batch, numbers):
    hidden = student_lib.hidden(model, params, batch)
    padded = jnp.pad(hidden, ((0, 0), (0, steps * width - length), (0, 0)))

    def part(i):
      here = jax.lax.dynamic_slice_in_dim(padded, i * width, width, axis=1)
      log_p = log_softmax(model.logits(params, here))
      if layout.kind == "top_k":
        return jax.lax.top_k(log_p, layout.k)[::-1]
      key = jax.random.fold_in(jax.random.key(0), i)
      keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
      return jax.vmap(_draw, (0, 0, None))(keys, log_p, layout.k), None

    def join(x):  # [steps, B, width, K] -> [B, T, K]
      return jnp.moveaxis(x, 0, 1).reshape(len(numbers), steps * width, layout.k)[:, :length]

    ids, log_probs = jax.tree.map(join, jax.lax.map(part, jnp.arange(steps)))
    return ids, log_probs, hidden if layout.hidden else None

  return lambda batch, numbers: look(frozen["teacher"], batch, numbers)


def _draw(key: jax.Array, log_p: jax.Array, count: int) -> jax.Array:
  """`count` ids of exp(log_p) [T, V] for each token, by the inverse of its distribution: one array
  of V, where Gumbel noise takes one for each draw."""
  mass = jnp.cumsum(jnp.exp(log_p), axis=-1)
  place = jax.random.uniform(key, (len(log_p), count)) * mass[:, -1:]
  ids = jax.vmap(lambda m, p: jnp.searchsorted(m, p, side="right"))(mass, place)
  return jnp.minimum(ids, log_p.shape[-1] - 1)


def _look_at(config, look, cache: manifest.Cache, rows: range, mesh: Mesh) -> Iterator[tuple]:
  """The signals of each row, while the next batch is in flight. The last batch is filled up with
  its last row."""
  pending: tuple = ()
  for begin in [*range(0, len(rows), config.batch_size), len(rows)]:
    before, numbers = pending, np.asarray(rows[begin : begin + config.batch_size], np.int32)
    if len(numbers):
      full = np.pad(numbers, (0, config.batch_size - len(numbers)), mode="edge")
      examples = [cache.example(number) for number in full]
      seen = {k: np.stack([e[k] for e in examples]) for k in examples[0] if k != "mask"}
      pending = len(numbers), look(put_batch(seen, mesh), put_batch(full, mesh))
    if before:
      count, found = before
      found = jax.device_get(found)
      for i in range(count):
        yield tuple(None if x is None else x[i] for x in found)


def _write_shard(file: pathlib.Path, layout: signals.Layout, found: Iterator[tuple]) -> None:
  from array_record.python.array_record_module import ArrayRecordWriter

  with published(file) as temporary:
    writer = ArrayRecordWriter(str(temporary), "group_size:1")  # a record is read alone
    for row in found:
      writer.write(signals.encode(layout, *row))
    writer.close()


@contextlib.contextmanager
def published(file: pathlib.Path) -> Iterator[pathlib.Path]:
  """A name to write under; afterwards the content is on the disk and has its own name."""
  temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex}.tmp")
  try:
    yield temporary
    _sync(temporary)
    os.replace(temporary, file)
    _sync(file.parent)
  finally:
    temporary.unlink(missing_ok=True)


def _sync(path: pathlib.Path) -> None:
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def main(argv: list[str]) -> int:
  from distill_jax import train

  arguments = argparse.ArgumentParser(prog="python -m distill_jax.cache", allow_abbrev=False)
  arguments.add_argument("--out", default="", help="in the place of data.cache.folder")
  arguments.add_argument("--process", type=int, default=0)
  arguments.add_argument("--processes", type=int, default=1)
  try:
    parsed, config = train.command_line(arguments, argv)
    if not 0 <= parsed.process < parsed.processes:
      raise ConfigError(f"--process {parsed.process} is not one of --processes {parsed.processes}.")
    train.enable_compilation_cache(config.cache_dir)
    config.data.cache.folder = parsed.out or config.data.cache.folder
    cache = manifest.of(config)
    write(config, cache, parsed.process, parsed.processes)
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  left = sum(not file.exists() for file in cache.files)
  others = f", {left} of {len(cache.files)} shards left to other processes" if left else ""
  size = cache.fields["bytes_per_token"]
  print(f"{cache.folder}: {cache.rows:,} rows, {size:.0f} bytes per token{others}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
