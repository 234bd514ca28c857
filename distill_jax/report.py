"""What a run tells while it runs: a bar, lines of metrics, and the figures it ends with."""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.progress import TimeRemainingColumn as Remaining

from distill_jax.metrics import Meter, Writer, memory


class NonFinite(Exception):
  """Too many updates in a row were not finite."""


class Report:
  """Metrics merged over `log_every` steps; a step's are read while the next one runs, so that the
  device never waits. Times are of the train step: evals and compilation are apart.
  """

  def __init__(self, config, workdir: pathlib.Path, title: str, first: int):
    self.config = config
    self.rate = f"{config.unit}_per_s"
    self.writer = Writer(workdir, config.writers, config.to_dict(), first)
    self.bar = Bar(title, first, config.steps)
    self.results: dict[str, float] = {}  # of the last evals
    self.compile_seconds = 0.0
    self.meter, self.steps, self.window = Meter(), 0, 0.0  # since the last line
    self.items = self.busy = 0.0  # of the whole run but its first window
    self.pending: tuple | None = None
    self.skipped = 0
    self.mark = time.monotonic()

  def __enter__(self):
    self.bar.progress.start()
    return self

  def __exit__(self, *exc):
    self.bar.progress.stop()

  def compile(self, lowered) -> Any:
    """The compiled step, its time noted."""
    begun = time.monotonic()
    compiled = lowered.compile()
    self.mark = time.monotonic()
    self.compile_seconds = self.mark - begun
    return compiled

  def add(self, step: int, metrics: Any) -> None:
    """Takes the metrics of the step just dispatched; those of the one before are read."""
    before, self.pending = self.pending, (step, metrics)
    if before is not None:
      self._merge(*before)

  def flush(self) -> None:
    """Waits for the last step."""
    if self.pending is not None:
      self._merge(*self.pending)
      self.pending = None

  def evaluate(self, step: int, evals: Mapping, state: Any, frozen: Any) -> dict[str, float]:
    """Runs the evals and keeps their values as `results`."""
    self.flush()
    if evals:
      self.results = {f"{n}/{k}": v for n, f in evals.items() for k, v in f(state, frozen).items()}
      self.writer.write(step, self.results)
      self.bar.line(step, self.results)
    self.mark = time.monotonic()
    return self.results

  def summary(self) -> dict[str, float]:
    """The last evals, throughput, and seconds since the run's first start, compilation included."""
    rate = {f"train/{self.rate}": self.items / self.busy} if self.busy else {}
    seconds = {
      "train/seconds": self.writer.seconds(),
      "train/compile_seconds": self.compile_seconds,
    }
    return {**self.results, **rate, **seconds}

  def _merge(self, step: int, metrics: Any) -> None:
    metrics = jax.device_get(metrics)  # waits for `step`
    now = time.monotonic()
    self.window, self.mark = self.window + now - self.mark, now
    self.meter.add(metrics)
    self.steps += 1
    self._guard(step, metrics)
    items, means = self.meter.count("loss"), self.meter.means()
    loss = means.get("loss", float("nan"))
    text = f"loss {loss:.4f}  {items / self.window:,.0f} {self.config.unit}/s"
    self.bar.progress.update(self.bar.task, completed=step, text=text)
    if step % self.config.log_every and step != self.config.steps:
      return
    values = {f"train/{name}": value for name, value in means.items()}
    values["train/step_seconds"] = self.window / self.steps
    values[f"train/{self.rate}"] = items / self.window
    if step <= self.config.log_every:  # the first window holds the warm-up
      values["train/compile_seconds"] = self.compile_seconds
    else:
      self.items, self.busy = self.items + items, self.busy + self.window
    values |= {f"memory/{name}": value for name, value in memory().items()}
    self.writer.write(step, values)
    self.bar.line(step, {"loss": loss, self.rate: items / self.window})
    self.meter, self.steps, self.window = Meter(), 0, 0.0

  def _guard(self, step: int, metrics: Any) -> None:
    bad = [k for k, (total, _) in metrics.items() if k.split("/")[-1] == "skipped" and total > 0]
    self.skipped = self.skipped + 1 if bad else 0
    if self.skipped >= self.config.max_skipped:
      names = [k for k, (total, _) in metrics.items() if not np.isfinite(total)] or bad
      raise NonFinite(
        f"Step {step}: {' and '.join(names)} not finite, {self.skipped} updates in a row skipped. "
        "The last good checkpoint is kept. Lower optim.lr, set optim.clip_norm, or look at the "
        "batches of these steps."
      )


class Bar:
  """A live line on a terminal: step, loss, rate, time left. Plain lines elsewhere."""

  def __init__(self, title: str, first: int, steps: int):
    self.title, self.steps = title, steps
    self.console = Console(quiet=jax.process_index() != 0, highlight=False)
    self.progress = Progress(
      TextColumn("{task.description}"),
      BarColumn(bar_width=24),
      MofNCompleteColumn(),
      TextColumn("{task.fields[text]}"),
      Elapsed(),
      TextColumn("left"),
      Remaining(),
      console=self.console,
      disable=not self.console.is_terminal,
    )
    self.task = self.progress.add_task(title, total=steps, completed=first, text="compiling")

  def line(self, step: int, values: Mapping[str, float]) -> None:
    """At each report; a terminal has the bar for it."""
    if not self.console.is_terminal:
      words = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
      self.console.print(f"{self.title}  step {step}/{self.steps}  {words}", soft_wrap=True)
