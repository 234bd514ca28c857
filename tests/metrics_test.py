"""Metrics on the host: weights, the lines of metrics.jsonl after every kind of end, writers."""

import json
import math
import sys
import types

import jax
import numpy as np
import pytest

from distill_jax import metrics
from distill_jax.config import ConfigError
from distill_jax.metrics import Meter, Writer


def test_meter_weighs_by_count_not_by_step():
  meter = Meter()
  meter.add(dict(loss=(10.0, 2.0), accuracy=(1.0, 1.0)))
  meter.add(dict(loss=(90.0, 8.0), extra=(np.float32(3), np.float32(4))))
  assert meter.means() == dict(loss=10.0, accuracy=1.0, extra=0.75)
  assert meter.count("loss") == 10
  assert meter.count("nothing") == 0


def test_what_counted_nothing_is_absent_never_zero():
  meter = Meter()
  meter.add(dict(reward=(0.0, 0.0), loss=(0.0, 3.0)))
  assert meter.means() == dict(loss=0.0)
  meter.add(dict(reward=(2.0, 4.0)))
  assert meter.means() == dict(loss=0.0, reward=0.5)


def test_meter_adds_up_in_float64_and_leaves_its_input_alone():
  meter, pair = Meter(), (np.float32(1e8), np.float32(1))
  for _ in range(3):
    meter.add(dict(big=pair))
  meter.add(dict(big=(1.0, 0.0)))
  assert meter.means()["big"] == (3e8 + 1) / 3  # float32 would lose the 1
  assert pair == (1e8, 1)


def test_a_nan_stays_a_nan():
  meter = Meter()
  meter.add(dict(loss=(math.nan, 1.0)))
  meter.add(dict(loss=(1.0, 1.0)))
  assert math.isnan(meter.means()["loss"])


def test_memory_counts_bytes():
  peaks = metrics.memory()
  assert 1e7 < peaks["host_peak_bytes"] < 1e12  # python and jax are more than 10 MB
  assert all(isinstance(v, float) for v in peaks.values())


def test_memory_is_of_the_fullest_device(monkeypatch):
  def device(**stats):
    return types.SimpleNamespace(memory_stats=lambda: stats or None)

  devices = [device(peak_bytes_in_use=3), device(peak_bytes_in_use=5), device(), device(other=9)]
  monkeypatch.setattr(jax, "local_devices", lambda: devices)
  assert metrics.memory()["device_peak_bytes"] == 5


@pytest.fixture
def clock(monkeypatch):
  """Seconds that pass when a test says so."""
  now = types.SimpleNamespace(seconds=100.0)
  monkeypatch.setattr(metrics.time, "monotonic", lambda: now.seconds)
  return now


def lines(workdir):
  return [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_lines_hold_step_seconds_and_values(tmp_path, clock):
  writer = Writer(tmp_path, (), {}, 0)
  writer.write(1, dict(loss=2.0))
  clock.seconds += 1.23456
  writer.write(2, {"eval/bits": 1.5})
  assert lines(tmp_path) == [
    dict(step=1, seconds=0.0, loss=2.0),
    {"step": 2, "seconds": 1.235, "eval/bits": 1.5},
  ]
  assert metrics.read(tmp_path / "metrics.jsonl") == lines(tmp_path)
  assert metrics.read(tmp_path / "metrics.jsonl", until=1) == lines(tmp_path)[:1]
  assert metrics.read(tmp_path / "absent.jsonl") == []


def test_what_is_not_finite_is_null(tmp_path, clock):
  writer = Writer(tmp_path, (), {}, 0)
  writer.write(1, dict(a=math.nan, b=math.inf, c=-math.inf, d=0.0))
  text = (tmp_path / "metrics.jsonl").read_text()
  assert "NaN" not in text and "Infinity" not in text  # which are not JSON
  assert lines(tmp_path) == [dict(step=1, seconds=0.0, a=None, b=None, c=None, d=0.0)]


def test_a_resumed_run_drops_the_lines_after_its_checkpoint_and_counts_seconds_on(tmp_path, clock):
  writer = Writer(tmp_path, (), {}, 0)
  for step in (1, 2, 2, 3, 4):
    clock.seconds += 1
    writer.write(step, dict(loss=float(step)))
  clock.seconds += 1000  # nobody runs
  resumed = Writer(tmp_path, (), {}, 2)
  assert [line["step"] for line in lines(tmp_path)] == [1, 2, 2]
  clock.seconds += 0.5
  resumed.write(3, dict(loss=30.0))
  assert lines(tmp_path)[-1] == dict(step=3, seconds=3.5, loss=30.0)
  assert resumed.seconds() == 3.5
  assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_run_from_the_start_begins_a_new_file(tmp_path, clock):
  Writer(tmp_path, (), {}, 0).write(5, dict(loss=1.0))
  assert Writer(tmp_path, (), {}, 0).seconds() == 0.0
  assert lines(tmp_path) == []


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_last_line_cut_short_by_a_crash_is_dropped(tmp_path, cut):
  writer = Writer(tmp_path, (), {}, 0)
  for step in (1, 2, 3):
    writer.write(step, dict(loss=1.0))
  file = tmp_path / "metrics.jsonl"
  file.write_bytes(file.read_bytes()[: -cut - 1])
  assert [line["step"] for line in metrics.read(file)] == [1, 2]
  Writer(tmp_path, (), {}, 9).write(4, dict(loss=1.0))
  assert [line["step"] for line in lines(tmp_path)] == [1, 2, 4]  # on a line of its own


def test_other_processes_write_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  Writer(tmp_path, ("tensorboard",), {}, 0).write(1, dict(loss=1.0))
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name, module", [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_writer_that_is_not_installed_says_what_to_install(tmp_path, monkeypatch, name, module):
  monkeypatch.setitem(sys.modules, module, None)  # as if it were missing
  with pytest.raises(ConfigError) as error:
    Writer(tmp_path, (name,), {}, 0)
  assert str(error.value) == f"writers names {name!r}, but it is missing: pip install {module}."


def test_an_unknown_writer_is_named(tmp_path):
  with pytest.raises(ConfigError, match="No writer 'tensorbord': tensorboard or wandb"):
    Writer(tmp_path, ("tensorbord",), {}, 0)


def test_tensorboard_and_wandb_get_the_same_values(tmp_path, monkeypatch):
  """Against stand-ins with the two calls that are made of each."""
  seen, config = [], dict(steps=3)

  class SummaryWriter:
    def __init__(self, folder):
      seen.append(folder)

    def add_scalar(self, name, value, step):
      seen.append((name, value, step))

  run = types.SimpleNamespace(log=lambda values, step: seen.append((values, step)))
  wandb = types.SimpleNamespace(init=lambda **kwargs: seen.append(kwargs["config"]) or run)
  tensorboard = types.SimpleNamespace(SummaryWriter=SummaryWriter)
  monkeypatch.setitem(sys.modules, "tensorboardX", tensorboard)
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  Writer(tmp_path, ("tensorboard", "wandb"), config, 0).write(7, dict(a=1.0, b=2.0))
  assert seen[:2] == [str(tmp_path / "tensorboard"), config]
  assert seen[2:] == [("a", 1.0, 7), ("b", 2.0, 7), (dict(a=1.0, b=2.0), 7)]
