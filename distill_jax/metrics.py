"""Metrics on the host: sums and counts merged over steps, and written as JSON lines.

A metric is a (sum, count) pair until it is printed, so that averages weigh tokens or examples, not
batches.
"""

import json
import math
import pathlib
import resource
import sys
import time
from collections.abc import Mapping

import jax
import numpy as np

from distill_jax.config import ConfigError, write_whole


class Meter:
  """Adds up the (sum, count) metrics of several steps."""

  def __init__(self):
    self.totals: dict[str, np.ndarray] = {}

  def add(self, metrics: Mapping[str, tuple]) -> None:
    for name, pair in metrics.items():
      self.totals[name] = self.totals.get(name, 0) + np.array(pair, np.float64)

  def means(self) -> dict[str, float]:
    """Name -> sum / count; a metric that counted nothing is absent."""
    return {k: float(s / n) for k, (s, n) in self.totals.items() if n > 0}

  def count(self, name: str) -> float:
    return float(self.totals[name][1]) if name in self.totals else 0.0


def memory() -> dict[str, float]:
  """Peak bytes of the fullest local device, where the backend tells, and of this process."""
  stats = [s for s in (d.memory_stats() for d in jax.local_devices()) if s]
  peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
  unit = (
    1 if sys.platform == "darwin" else 1024
  )  # getrusage counts bytes there, kilobytes elsewhere
  host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  return dict(
    host_peak_bytes=float(host), **({"device_peak_bytes": float(max(peaks))} if peaks else {})
  )


class Writer:
  """metrics.jsonl always; TensorBoard and Weights & Biases when `config.writers` asks. Process 0
  writes."""

  def __init__(
    self, workdir: pathlib.Path, writers: tuple[str, ...], config: dict, first_step: int
  ):
    self.path = workdir / "metrics.jsonl"
    self.active = jax.process_index() == 0
    self.others = [_open(name, workdir, config) for name in writers] if self.active else []
    kept = read(self.path, until=first_step)
    self.earlier = kept[-1]["seconds"] if kept else 0.0  # of the runs before this one
    self.begun = time.monotonic()
    if self.active:
      # lines after the restored step are written again
      write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends one line; what is not finite is written as null."""
    if not self.active:
      return
    clean = {k: (v if math.isfinite(v) else None) for k, v in values.items()}
    with self.path.open("a") as file:
      line = dict(step=step, seconds=round(self.seconds(), 3), **clean)
      file.write(json.dumps(line) + "\n")
    for log in self.others:
      log(step, values)

  def seconds(self) -> float:
    """Since the run began, the time between its interruptions and its restarts left out."""
    return self.earlier + time.monotonic() - self.begun


def read(path: pathlib.Path, until: int | None = None) -> list[dict]:
  """The lines of a metrics.jsonl, up to a step; a last line cut short by a crash is dropped."""
  lines = []
  for text in path.read_text().splitlines() if path.exists() else []:
    try:
      line = json.loads(text)
    except json.JSONDecodeError:
      continue
    if until is None or line["step"] <= until:
      lines.append(line)
  return lines


def _open(name: str, workdir: pathlib.Path, config: dict):
  """(step, values) -> None of one further writer."""
  try:
    if name == "tensorboard":
      from tensorboardX import SummaryWriter

      board = SummaryWriter(str(workdir / "tensorboard"))
      return lambda step, values: [board.add_scalar(k, v, step) for k, v in values.items()]
    if name == "wandb":
      import wandb

      run = wandb.init(project="distill_jax", dir=str(workdir), config=config, resume="allow")
      return lambda step, values: run.log(dict(values), step=step)
  except ImportError as error:
    raise ConfigError(
      f"writers names {name!r}, but it is missing: pip install {error.name}."
    ) from None
  raise ConfigError(f"No writer {name!r}: tensorboard or wandb.")
