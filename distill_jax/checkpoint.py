"""Checkpoints: state and data iterator together, written in the background, checked before use.

The only file that imports orbax. Step 12 is the directory `12`, which orbax writes under another
name and renames when complete. Orbax finds missing and truncated files, not flipped bits, so the
size and CRC-32 of all files are added right after; a run killed in between leaves one unverified,
used unless orbax objects. Each process checks a share; process 0 alone lists, renames, deletes.
"""

import dataclasses
import json
import math
import time
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from distill_jax.config import ConfigError


@dataclasses.dataclass
class Checkpoints:
  """Checkpoints of one run: restores the latest usable one, saves when due, deletes old ones."""

  directory: Any  # a local path or gs://..., of one run only; the first save makes it
  _: dataclasses.KW_ONLY
  every: int  # save at the multiples of this step count
  keep: int  # so many of the latest; with one there is nothing to fall back on
  keep_best: int = 0  # and so many of the best, where
  best_metric: str | None = None  # is a name in the metrics of `save`; NaN or absent is never best
  best_mode: str = "min"  # or max

  def __post_init__(self):
    if self.every < 1 or self.keep < 1 or self.best_mode not in ("min", "max"):
      raise ConfigError(f"every and keep must be at least 1, best_mode min or max: {self}")
    path = epath.Path(self.directory)
    self.directory = path if path.is_absolute() else path.resolve()  # gs:// is absolute
    self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    self._pending: Future | None = None
    self._last = -1  # the step last saved or restored

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *exc) -> None:
    self.wait()

  def restore(self, abstract_state: Any, data_iterator: Any) -> Any | None:
    """The state of the latest usable checkpoint, or None; moves `data_iterator` to its position.

    A broken checkpoint is reported and renamed (`12.broken-<time>`), and the one before it is used.
    `abstract_state` is a tree of ShapeDtypeStruct with shardings, on any mesh. Raises ConfigError
    for an intact checkpoint of another state or another data pipeline.
    """
    self.wait()
    while (step := self._latest()) >= 0:
      path = self.directory / str(step)
      cause, verified = _check(path)
      if not _in_any_process(cause):
        try:
          difference = _difference(path, abstract_state)
          if not difference:
            state = ocp.load_checkpointables(path, {"state": abstract_state})["state"]
            ocp.load_checkpointables(path, {"data": data_iterator})  # last: it moves the iterator
        except Exception as error:
          cause = _root_cause(error)
          if verified:
            hint = "If the data pipeline or the number of processes changed, use another --workdir."
            raise ConfigError(
              f"{path} is intact but cannot be restored: {cause}. {hint}"
            ) from error
        else:
          if difference:
            raise ConfigError(f"{path} is of another config: {difference}. Use another --workdir.")
      if not _in_any_process(cause):
        if not verified:
          logging.warning("%s has no checksums: restored, its content not verified.", path)
        self._last = step
        return state
      if jax.process_index() == 0:
        aside = path.rename(f"{path}.broken-{time.time_ns() // 1000}")
        cause, now = cause or "found by another process", "now trying the one before, if any"
        logging.warning("%s is broken: %s. Kept as %s; %s.", path, cause, aside.name, now)
    return None

  def save(self, step: int, state: Any, data_iterator: Any, metrics=None, force=False) -> bool:
    """Starts to save if `step` is due or `force`, and returns whether it did.

    Then `state` may be donated and `data_iterator` moved. Raises the error of the save before.
    """
    if step == self._last or not (force or step % self.every == 0):
      return False
    if self.best_metric and metrics and self.best_metric not in metrics:
      raise ConfigError(f"best_metric {self.best_metric!r} is not one of {sorted(metrics)}")
    value = float((metrics or {}).get(self.best_metric, math.nan))
    self.wait()
    path = self.directory / str(step)
    response = ocp.save_checkpointables_async(path, {"state": state, "data": data_iterator})
    self._pending = self._worker.submit(self._finish, response, path, value)
    self._last = step
    return True

  def wait(self) -> None:
    """Blocks until the save in flight is complete; raises its error."""
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def _finish(self, response: Any, path: epath.Path, value: float) -> None:
    # In a thread: no collectives here, they would race with those of the train step.
    response.result()
    index, count = jax.process_index(), jax.process_count()
    files = {str(f.relative_to(path)): _checksum(f) for f in _files(path)[index::count]}
    unfinished = path / f"checksums.{index}.tmp"
    unfinished.write_text(json.dumps({"processes": count, "best_metric": value, "files": files}))
    unfinished.rename(path / f"checksums.{index}.json")
    if index == 0:
      self._delete_old()

  def _delete_old(self) -> None:
    steps = self._steps()
    values = {s: v for s in steps if not math.isnan(v := _best_metric(self.directory / str(s)))}
    best = sorted(values, key=values.__getitem__, reverse=self.best_mode == "max")
    keep = {*steps[-self.keep :], *best[: self.keep_best]}
    for path in self.directory.iterdir():
      unfinished = path.name.endswith(".orbax-checkpoint-tmp")  # and abandoned: none is in flight
      if unfinished or (path.name.isdecimal() and int(path.name) not in keep):
        path.rmtree()

  def _steps(self) -> list[int]:
    names = [p.name for p in self.directory.iterdir()] if self.directory.exists() else []
    return sorted(int(name) for name in names if name.isdecimal())

  def _latest(self) -> int:
    """-1 if there is none. As process 0 sees it: all try the same, after its renames."""
    step = max(self._steps(), default=-1) if jax.process_index() == 0 else -1
    return int(multihost_utils.broadcast_one_to_all(np.int32(step)))


def _in_any_process(flag: Any) -> bool:
  return bool(np.any(multihost_utils.process_allgather(np.array(bool(flag)))))


def _difference(path: epath.Path, abstract_state: Any) -> str:
  """The first leaf whose key, dtype or shape is not the checkpoint's."""
  saved, wanted = (
    {
      jax.tree_util.keystr(key, simple=True, separator="/"): f"{np.dtype(x.dtype)}{list(x.shape)}"
      for key, x in jax.tree.leaves_with_path(tree)
    }
    for tree in (ocp.metadata(path, "state").metadata, abstract_state)
  )
  for key in [*wanted, *saved]:
    there, here = (leaves.get(key, "absent") for leaves in (saved, wanted))
    if there != here:
      return f"{key} is {there} in the checkpoint, {here} in this run"
  return ""


def _root_cause(error: BaseException) -> str:
  while (below := error.__cause__ or error.__context__) is not None:
    error = below
  return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _files(path: epath.Path) -> list[epath.Path]:
  below = (_files(p) if p.is_dir() else [p] for p in path.iterdir())
  return sorted(f for files in below for f in files if not f.name.startswith("checksums."))


def _checksum(path: epath.Path) -> list[int]:
  size = crc = 0
  with path.open("rb") as f:
    while chunk := f.read(1 << 22):
      size, crc = size + len(chunk), zlib.crc32(chunk, crc)
  return [size, crc]


def _check(path: epath.Path) -> tuple[str, bool]:
  """What is wrong with this process's share of a checkpoint; whether all of it has checksums."""
  if not (path / "commit_success.txt").exists():  # orbax writes it last
    return "commit_success.txt is missing", False
  try:
    parts = [json.loads(part.read_text()) for part in path.glob("checksums.*.json")]
    expected = {name: checksum for part in parts for name, checksum in part["files"].items()}
    for name in sorted(expected)[jax.process_index() :: jax.process_count()]:
      if _checksum(path / name) != expected[name]:
        return f"the size or content of {name} has changed", False
    return "", bool(parts) and len(parts) == parts[0]["processes"]
  except (OSError, ValueError, LookupError, TypeError) as error:
    return _root_cause(error), False


def _best_metric(path: epath.Path) -> float:
  try:
    return float(json.loads((path / "checksums.0.json").read_text())["best_metric"])
  except (OSError, ValueError, LookupError, TypeError):  # never finished, or broken
    return math.nan
