"""What a run tells: merged metrics, the times of the step alone, the guard, the bar."""

import json
import math
import types

import jax
import pytest
from ml_collections import ConfigDict

from distill_jax import report
from distill_jax.report import Bar, NonFinite, Report


@pytest.fixture
def clock(monkeypatch):
  """Seconds that pass when a test says so."""
  now = types.SimpleNamespace(seconds=100.0)
  monkeypatch.setattr(report.time, "monotonic", lambda: now.seconds)
  return now


def make(workdir, first=0, **changes):
  values = dict(steps=6, unit="tokens", writers=(), log_every=2, max_skipped=3)
  return Report(ConfigDict({**values, **changes}), workdir, "kd", first)


def lines(workdir):
  return [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]


def metrics(loss=1.0, count=1.0, skipped=0.0):
  return dict(loss=(loss * count, count), skipped=(skipped, 1.0))


def test_lines_are_means_by_count_and_times_of_the_step_alone(tmp_path, clock):
  run = make(tmp_path)

  def evaluate(state, frozen):
    clock.seconds += 50
    return dict(bits=state + frozen)

  def lowered():
    clock.seconds += 7
    return "compiled"

  assert run.compile(types.SimpleNamespace(compile=lowered)) == "compiled"
  run.add(1, metrics(loss=1.0, count=10.0))
  clock.seconds += 1
  run.add(2, metrics(loss=2.0, count=30.0))
  assert lines(tmp_path) == []  # step 2 is read when step 3 has been dispatched
  clock.seconds += 1
  run.add(3, metrics(loss=5.0, count=4.0))
  clock.seconds += 3
  run.add(4, metrics(loss=5.0, count=4.0))
  clock.seconds += 1
  assert run.evaluate(4, dict(language=evaluate), 1.0, 0.5) == {"language/bits": 1.5}
  run.add(5, metrics(count=6.0))
  clock.seconds += 2
  run.add(6, metrics(count=6.0))
  clock.seconds += 2
  run.flush()
  run.flush()  # nothing is pending

  first, second, evals, third = lines(tmp_path)
  assert (first["step"], first["train/loss"], first["train/skipped"]) == (2, 70 / 40, 0)
  assert (first["train/step_seconds"], first["train/tokens_per_s"]) == (1, 20)
  assert first["train/compile_seconds"] == 7 and "train/compile_seconds" not in second
  assert (second["step"], second["train/loss"], second["train/tokens_per_s"]) == (4, 5, 2)
  assert evals == {"step": 4, "seconds": 63.0, "language/bits": 1.5}
  assert (third["step"], third["train/step_seconds"], third["train/tokens_per_s"]) == (6, 2, 3)
  assert run.summary() == {
    "language/bits": 1.5,
    "train/tokens_per_s": 20 / 8,  # without the first window
    "train/seconds": 67.0,
    "train/compile_seconds": 7.0,
  }


def test_the_last_step_has_a_line_though_the_window_is_not_full(tmp_path, clock):
  run = make(tmp_path, steps=3)
  for step in (1, 2, 3):
    run.add(step, metrics())
    clock.seconds += 1
  run.flush()
  assert [line["step"] for line in lines(tmp_path)] == [2, 3]


def test_a_run_that_had_nothing_to_do_has_no_throughput(tmp_path, clock):
  run = make(tmp_path, steps=0)
  assert run.evaluate(0, {}, None, None) == {}
  assert run.summary() == {"train/seconds": 0.0, "train/compile_seconds": 0.0}


def test_updates_skipped_in_a_row_stop_the_run_with_step_and_quantity(tmp_path, clock):
  run = make(tmp_path, log_every=100)
  bad = metrics(loss=math.nan, skipped=1.0)
  with pytest.raises(NonFinite) as error:
    for step, values in enumerate([bad, bad, metrics(), bad, bad, bad, metrics()], 1):
      run.add(step, values)
      clock.seconds += 1
  message = str(error.value)
  assert message.startswith("Step 6: loss not finite, 3 updates in a row skipped.")
  assert "\n" not in message


def test_the_guard_sees_each_of_several_players(tmp_path, clock):
  run = make(tmp_path, max_skipped=1)
  values = {"generator/skipped": (0.0, 1.0), "critic/skipped": (1.0, 1.0), "loss": (1.0, 1.0)}
  run.add(1, values)
  clock.seconds += 1
  with pytest.raises(NonFinite, match="Step 1: critic/skipped not finite, 1 updates"):
    run.flush()


def test_without_a_terminal_the_bar_is_plain_lines(capsys):
  Bar("kd", 0, 20).line(10, dict(loss=1.23456, rate=4096.0))
  assert capsys.readouterr().out.split("\n") == ["kd  step 10/20  loss 1.235  rate 4096", ""]


def test_on_a_terminal_the_bar_shows_step_loss_and_rate(tmp_path, clock, capsys, monkeypatch):
  monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
  monkeypatch.setenv("COLUMNS", "200")
  with make(tmp_path) as run:
    run.add(1, metrics(loss=2.5, count=12345.6))
    clock.seconds += 1
    run.flush()
    run.bar.line(1, dict(hidden=1.0))
  out = capsys.readouterr().out
  assert "1/6" in out and "loss 2.5000  12,346 tokens/s" in out and "hidden" not in out


def test_other_processes_show_nothing(capsys, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  Bar("kd", 0, 20).line(10, dict(loss=1.0))
  assert capsys.readouterr().out == ""
