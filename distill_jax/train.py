"""The training loop: config, mesh, data, method, one compiled step, checkpoints. It knows no method
and no family.

  python -m distill_jax.train --config experiments/llm/kd.py[:arg,key=value] --workdir runs/kd
  [--config.key=value ...]

Interrupted anywhere, the same command continues to the same bits: the state holds all that the next
step reads, the data iterator is saved with it, and every key is folded in from the step number.
"""

import argparse
import ctypes
import json
import pathlib
import signal
import sys
import warnings
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax.checkpoint import Checkpoints
from distill_jax.config import ConfigError
from distill_jax.mesh import (
  abstract,
  batch_sharding,
  connect_groups,
  initialize_processes,
  make_mesh,
  put_batch,
  shardings,
)
from distill_jax.models import pretrained as pretrained_lib
from distill_jax.report import NonFinite, Report


class Program(NamedTuple):
  """An experiment as compiled functions; `step.lower(*abstract).compile()` is the train step."""

  method: method_lib.Method
  init: Any  # (key, pretrained) -> state, frozen
  step: Any  # (state, frozen, batch, key) -> state, metrics; donates state
  pretrained: dict[str, Any]  # host arrays, or leaves that devices read their part of
  abstract: tuple  # state, frozen, batch, key: shapes with shardings
  keys: tuple[jax.Array, jax.Array]  # of init, of the steps


class Stopped(Exception):
  """A signal asked the run to stop; what was done is saved."""


def build(config, mesh: Mesh) -> Program:
  """The programs of an experiment on a mesh. Nothing is computed on devices yet."""
  try:
    method = method_lib.load("methods", config.method.name).make(config)
    method = method_lib.over_seeds(method, config.seeds) if config.seeds > 1 else method
  except ValueError as error:  # what a model or a loss refuses
    raise ConfigError(f"{config.method.name}: {error}") from error
  data = method_lib.load("data", config.data.name)
  batch = data.spec(config)
  split = mesh.shape["data"] * mesh.shape["fsdp"]
  if config.batch_size % split:
    raise ConfigError(
      f"batch_size {config.batch_size} does not split over the {split} devices of the mesh axes "
      "data and fsdp."
    )
  pretrained = {name: pretrained_lib.load(path) for name, path in config.pretrained.items() if path}
  if hasattr(data, "whole"):  # methods that draw from the whole set inside the step
    pretrained["real"] = data.whole(config)
  shapes = jax.eval_shape(method.init, jax.random.key(0), pretrained)
  layouts = tuple(
    shardings(tree, rules, mesh)
    for tree, rules in zip(shapes, (config.sharding.state, config.sharding.frozen), strict=True)
  )
  replicated = NamedSharding(mesh, jax.P())
  batch_layout = jax.tree.map(lambda _: batch_sharding(mesh), batch)
  given = shardings(pretrained, config.sharding.frozen, mesh)
  start = jax.jit(
    method.init, donate_argnums=1, in_shardings=(replicated, given), out_shardings=layouts
  )

  def init(key, pretrained):
    with warnings.catch_warnings():  # weights that are read in another dtype are not reused
      warnings.filterwarnings("ignore", "Some donated buffers were not usable")
      return start(key, pretrained_lib.put(pretrained, given))

  step = jax.jit(
    method.step,
    donate_argnums=0,
    in_shardings=(*layouts, batch_layout, replicated),
    out_shardings=(layouts[0], replicated),
  )
  keys = tuple(jax.random.split(jax.random.key(config.seed)))
  arguments = (*shapes, batch, jax.eval_shape(lambda: jax.random.key(0)))
  layouts = (*layouts, batch_layout, replicated)
  return Program(method, init, step, pretrained, abstract(arguments, layouts), keys)


def run(config, workdir: pathlib.Path, *, title: str = "", profile: bool = False) -> dict[str, Any]:
  """Trains to `config.steps`, from the last checkpoint of the work directory if there is one.

  Returns:
    The last evals with `train/...` figures: what result.json in the work directory holds.

  Raises:
    ConfigError: the config can't be run. Stopped: by a signal, after saving. NonFinite: see
    `config.max_skipped`.
  """
  enable_compilation_cache(config.cache_dir)
  workdir.mkdir(parents=True, exist_ok=True)
  mesh = make_mesh(config.mesh)
  connect_groups(mesh)
  with jax.set_mesh(mesh), Signals() as signals:
    return _loop(config, workdir, mesh, signals, title or config.method.name, profile)


def _loop(config, workdir, mesh, signals, title, profile) -> dict[str, Any]:
  program = build(config, mesh)
  data = iter(method_lib.load("data", config.data.name).make(config))
  evals = {name: method_lib.load("evals", name).make(config) for name in config.evals}
  checkpoints = Checkpoints(
    workdir / "checkpoints",
    every=config.save_every,
    keep=config.keep,
    keep_best=config.keep_best,
    best_metric=config.best_metric or None,
    best_mode=config.best_mode,
  )
  with checkpoints:
    state = checkpoints.restore(program.abstract[0], data)
    if jax.process_index() == 0:
      for change in config_lib.differences(config, workdir) if state is not None else []:
        print(f"{workdir} was begun with another config: {change}", file=sys.stderr)
      config_lib.save(config, workdir)
    first = 0 if state is None else int(state["step"])
    with Report(config, workdir, title, first) as report:
      step: Any = None
      if first < config.steps:
        step = report.compile(program.step.lower(*program.abstract))
      give_back()
      fresh, frozen = program.init(program.keys[0], program.pretrained)
      state = fresh if state is None else state
      del fresh
      give_back()
      measured = report.evaluate(first, evals if first in (0, config.steps) else {}, state, frozen)
      if config.steps == 0:  # what init makes is the result
        checkpoints.save(0, state, data, metrics=measured, force=True)
      for t in range(first, config.steps):
        if profile and t == min(first + 3, config.steps - 1):
          jax.profiler.start_trace(str(workdir / "profile"))
        key = jax.random.fold_in(program.keys[1], t)
        batch = put_batch(next(data), mesh)
        if program.method.prepare is not None:
          batch = program.method.prepare(state, frozen, batch, key)
        state, metrics = step(state, frozen, batch, key)
        report.add(t + 1, metrics)  # reads the step before, while this one runs
        if profile and t == min(first + 8, config.steps - 1):
          report.flush()
          jax.profiler.stop_trace()
        last = t + 1 == config.steps
        measured = None
        if last or (t + 1) % config.eval_every == 0:
          measured = report.evaluate(t + 1, evals, state, frozen)
        stop = signals.arrived(t)
        checkpoints.save(t + 1, state, data, metrics=measured, force=last or stop)
        if stop and not last:
          checkpoints.wait()
          raise Stopped(
            f"Stopped at step {t + 1} of {config.steps}, saved; the same command continues."
          )
      results = report.summary()
  if jax.process_index() == 0:
    config_lib.write_whole(workdir / "result.json", json.dumps(results, indent=2) + "\n")
  return results


class Signals:
  """SIGTERM and SIGINT asked for a stop; all processes of a run agree on the step."""

  def __enter__(self):
    self.received = None
    self.previous = {}
    if jax.process_count() == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        self.previous[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *exc):
    for number, handler in self.previous.items():
      signal.signal(number, handler)

  def _receive(self, number, frame):
    if self.received == signal.SIGINT == number:
      raise KeyboardInterrupt  # the second Ctrl-C does not wait
    self.received = number

  def arrived(self, step: int) -> bool:
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      return multihost_utils.reached_preemption_sync_point(step)
    return self.received is not None


def give_back() -> None:
  """Memory that a compilation took goes back to the system, which glibc would keep: a quarter of
  a small run's peak (benchmarks/llm_step.py)."""
  if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
    libc.malloc_trim(0)


def enable_compilation_cache(folder: str) -> None:
  """Compiled programs are kept on disk between runs."""
  path = pathlib.Path(folder).expanduser() / "xla"
  path.mkdir(parents=True, exist_ok=True)
  jax.config.update("jax_compilation_cache_dir", str(path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def command_line(
  arguments: argparse.ArgumentParser, argv: list[str]
) -> tuple[argparse.Namespace, Any]:
  """Parsed arguments and the config that --config and --config.key=value give."""
  arguments.add_argument(
    "--config", required=True, help="experiments/FAMILY/NAME.py[:arg,key=value]"
  )
  parsed, rest = arguments.parse_known_args(argv)
  overrides = [a.removeprefix("--config.") for a in rest if a.startswith("--config.")]
  unknown = [a for a in rest if not a.startswith("--config.")]
  if unknown:
    raise ConfigError(
      f"Unknown argument {unknown[0]!r}: config keys are set with --config.KEY=VALUE."
    )
  return parsed, config_lib.load(parsed.config, overrides)


def main(argv: list[str]) -> int:
  arguments = argparse.ArgumentParser(prog="python -m distill_jax.train", allow_abbrev=False)
  arguments.add_argument("--workdir", required=True, type=pathlib.Path)
  arguments.add_argument(
    "--profile", action="store_true", help="trace five steps into WORKDIR/profile"
  )
  arguments.add_argument(
    "--coordinator", default="", help="host:port of process 0, for several processes"
  )
  arguments.add_argument(
    "--processes", type=int, default=0, help="-1: found by jax (TPU pod, SLURM)"
  )
  arguments.add_argument("--process", type=int, default=0)
  try:
    parsed, config = command_line(arguments, argv)
    initialize_processes(parsed.coordinator, parsed.processes, parsed.process)
    results = run(config, parsed.workdir, profile=parsed.profile)
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except NonFinite as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  except Stopped as stopped:
    print(stopped, file=sys.stderr)
    return 0
  if jax.process_index() == 0:
    print(json.dumps(results))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
