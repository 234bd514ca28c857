"""The loop as a user meets it: killed, resumed, stopped, fed nonsense, in real processes."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import metrics, train
from distill_jax.checkpoint import Checkpoints
from distill_jax.mesh import make_mesh
from distill_jax.method import load

ROOT = pathlib.Path(__file__).parent.parent
KD = "experiments/llm/kd.py:smoke"


def command(workdir, *overrides, config=KD):
  words = [sys.executable, "-m", "distill_jax.train", "--config", config, "--workdir", str(workdir)]
  return words + [f"--config.{o}" for o in overrides]


def start(workdir, *overrides, config=KD, devices=1):
  flags = f"--xla_force_host_platform_device_count={devices}"
  env = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=flags)
  return subprocess.Popen(
    command(workdir, *overrides, config=config),
    cwd=ROOT,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process, timeout=300):
  out, err = process.communicate(timeout=timeout)
  return process.returncode, out, err


def final_state(workdir, *overrides, config):
  """The state of the last checkpoint, read on one device."""
  config = config_lib.load(config, overrides)
  mesh = make_mesh(config.mesh, jax.devices()[:1])
  with jax.set_mesh(mesh):
    program = train.build(config, mesh)
    data = iter(load("data", config.data.name).make(config))
    checkpoints = Checkpoints(pathlib.Path(workdir) / "checkpoints", every=1, keep=2)
    return jax.device_get(checkpoints.restore(program.abstract[0], data))


def assert_same_bits(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def lines(workdir):
  return metrics.read(pathlib.Path(workdir) / "metrics.jsonl")


def kill_at_random(workdir, overrides, kills, seed, config):
  """Starts the run again and again and kills it between its start and its end, until it ends."""
  rng, killed = random.Random(seed), 0
  while True:
    process = start(workdir, *overrides, config=config)
    if killed < kills:
      seen = len(lines(workdir)) if (workdir / "metrics.jsonl").exists() else 0
      goal, deadline = seen + rng.randint(1, 6), time.monotonic() + 120
      while process.poll() is None and time.monotonic() < deadline:
        if (workdir / "metrics.jsonl").exists() and len(lines(workdir)) >= goal:
          time.sleep(rng.uniform(0, 0.05))
          break
        time.sleep(0.005)
      if process.poll() is None:
        process.kill()
        killed += 1
        finish(process)
        continue
    code, _, err = finish(process)
    assert code == 0, err
    return killed


@pytest.mark.parametrize(
  "config, kills",
  [
    (KD, 2),
    pytest.param(KD, 10, marks=pytest.mark.slow),
    ("experiments/dataset/dm.py:smoke", 2),
    pytest.param("experiments/dataset/mtt.py:smoke", 4, marks=pytest.mark.slow),
    pytest.param("experiments/diffusion/dmd2.py:smoke", 4, marks=pytest.mark.slow),
  ],
)
def test_killed_run_ends_in_the_same_bits(tmp_path, config, kills):
  steps = 12 * kills
  overrides = (f"steps={steps}", "save_every=3", "evals=()", "log_every=1")
  code, _, err = finish(start(tmp_path / "straight", *overrides, config=config))
  assert code == 0, err
  (tmp_path / "killed").mkdir()
  assert kill_at_random(tmp_path / "killed", overrides, kills, seed=kills, config=config) == kills
  states = [
    final_state(tmp_path / name, *overrides, config=config) for name in ("straight", "killed")
  ]
  assert int(states[0]["step"]) == steps
  assert_same_bits(*states)
  loss = [
    [(x["step"], x["train/loss"]) for x in lines(tmp_path / n)] for n in ("straight", "killed")
  ]
  assert loss[0] == loss[1]  # the curve too is that of one undisturbed run


def test_sigterm_saves_and_exits_0_and_the_run_continues(tmp_path):
  overrides = ("steps=100000", "save_every=100000", "evals=()")
  process = start(tmp_path, *overrides)
  while not (tmp_path / "metrics.jsonl").exists() or len(lines(tmp_path)) < 2:
    assert process.poll() is None, finish(process)[2]
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  code, _, err = finish(process, timeout=30)
  assert code == 0 and "saved; the same command continues" in err
  stopped = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdecimal())
  code, _, err = finish(start(tmp_path, f"steps={stopped + 2}", *overrides[1:]))
  assert code == 0, err
  assert lines(tmp_path)[-1]["step"] == stopped + 2


@pytest.mark.parametrize(
  "overrides, message",
  [
    (("divergence.chnk=3",), "Did you mean 'divergence.chunk'?"),
    (("steps=many",), "'steps' takes int, got 'many'"),
    (("data.source=/nowhere",), "'/nowhere' is not"),
    (("pretrained.teacher=nothing",), "No model at 'nothing'"),
    (("method.name=llm.kq",), "Did you mean 'llm.kd'?"),
    (("mesh.fsdp=3",), "devices"),
  ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, capsys, overrides, message):
  arguments = command(tmp_path, *overrides)[3:]
  assert train.main(arguments) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


def test_updates_that_stay_non_finite_stop_the_run_and_keep_the_checkpoint(tmp_path, capsys):
  arguments = command(tmp_path, "optim.lr=1e30", "optim.clip_norm=0.0", "optim.schedule=constant",
                      "steps=50", "max_skipped=4", "evals=()", "optim.name=sgd")[3:]  # fmt: skip
  assert train.main(arguments) == 1
  error = capsys.readouterr().err
  assert "not finite, 4 updates in a row skipped" in error and "grad_norm" in error
  kept = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdecimal()]
  assert kept and max(kept) < 50


def test_profile_writes_a_trace(tmp_path):
  arguments = [*command(tmp_path, "steps=10", "evals=()"), "--profile"]
  env = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS="")  # the profiler is one for a process
  subprocess.run(arguments, cwd=ROOT, env=env, check=True, capture_output=True)
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_import_is_quick_and_does_no_jax_work():
  code = "import sys, distill_jax; assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_run_of_no_steps_is_measured_once_and_kept(tmp_path):
  """A selection is done in init."""
  arguments = command(tmp_path, "steps=0", config="experiments/dataset/selection.py:smoke")[3:]
  for _ in range(2):  # and the same command finds it done
    assert train.main(arguments) == 0
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["0"]
  measured = [sorted(line) for line in lines(tmp_path)]
  assert measured[0] == measured[-1] and "distilled/accuracy@0" in measured[0]
  assert (tmp_path / "result.json").exists()
