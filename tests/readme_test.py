"""Every command of the README: run in small, or its parts shown to exist."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BLOCKS = re.findall(r"^```\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
COMMANDS = [line.partition("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
# what makes a command small: the same words, on models of a few thousand parameters
SMALL = (
  ("kd.py:", "kd.py:smoke,"),
  ("quickstart.py", "quickstart.py:smoke"),
  ("steps=200", "steps=2"),
  ("llama3_8b_to_1b.py --topology v5e:16x16", "kd.py:smoke --topology v5e:2x2"),
)


def run(command, folder):
  for word, small in SMALL:
    command = command.replace(word, small)
  words = shlex.split(
    command.replace("python ", f"{sys.executable} ").replace("runs/", f"{folder}/")
  )
  words = [str(folder / w) if w == "my_student" else w for w in words]
  env = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS="")
  return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)


def test_the_readme_has_its_commands():
  assert "make run" in COMMANDS and "make test" in COMMANDS


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_knows_the_target(command):
  done = subprocess.run(
    [*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert "distill_jax.tables" in done.stdout or "pytest" in done.stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("pip")])
def test_setup_has_the_extra(command):
  extra = re.search(r"\.\[(\w+)\]", command)[1]
  assert f'"{extra}":' in (ROOT / "setup.py").read_text()


def test_the_python_commands_run_one_after_the_other(tmp_path):
  commands = [c for c in COMMANDS if c.startswith("python -m distill_jax")]
  exports = re.findall(r"`(python -m distill_jax\.export .*?)`", (ROOT / "README.md").read_text())
  assert len(commands) == 3 and len(exports) == 1
  for command in [*commands[:2], *exports, *commands[2:]]:
    if "distill_jax.plan" in command:
      pytest.importorskip("libtpu", reason="the plan needs the [tpu] extra")
    done = run(command, tmp_path)
    assert done.returncode == 0, (command, done.stderr)
  assert (tmp_path / "my_student" / "model.safetensors").exists()
  assert (tmp_path / "quickstart" / "table.png").exists()
