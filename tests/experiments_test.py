"""Every experiment file: its smoke version trains two steps on eight devices, is restored and goes
on to the same figures.
"""

import pathlib
import shutil

import jax
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import train

ROOT = pathlib.Path(__file__).parent.parent
EXPERIMENTS = sorted(
  p.relative_to(ROOT).as_posix()
  for p in (ROOT / "experiments").rglob("*.py")
  if p.name != "common.py" and p.parent.name != "tables"
)


# the others of these families run in methods_test.py, from the same smoke configs
QUICK = dict(
  llm=("sft", "kd", "gkd", "cached_kd", "llama3_8b_to_1b"),
  diffusion=("denoising", "sid", "meanflow", "sds"),
  dataset=("dm", "kip", "selection", "judge"),
)


def _slow(path):
  _, family, name = path.removesuffix(".py").split("/")
  return family in QUICK and name not in QUICK[family]


TRAINED = [
  pytest.param(path, marks=[pytest.mark.slow] if _slow(path) else []) for path in EXPERIMENTS
]


@pytest.mark.parametrize("path", TRAINED)
def test_two_steps_and_the_second_again(path, tmp_path):
  assert jax.device_count() == 8
  config = config_lib.load(f"{path}:smoke")
  results = train.run(config, tmp_path)
  assert all(np.isfinite(v) for v in results.values())
  assert any("/" in name and not name.startswith("train/") for name in results)
  steps = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
  assert steps == ["1", "2"]
  shutil.rmtree(tmp_path / "checkpoints" / "2")
  again = train.run(config, tmp_path)
  measured = {name for name in results if not name.startswith("train/")}
  assert {name: again[name] for name in measured} == {name: results[name] for name in measured}


@pytest.mark.parametrize("path", EXPERIMENTS)
def test_full_config_builds_and_says_how_it_is_run(path):
  config = config_lib.load(path)
  assert config.method.name and config.steps >= 0  # none where init does it all
  text = (ROOT / path).read_text()
  assert "Takes:" in text and ("Run:" in text or "Plan:" in text)
