"""Samples of a run as a picture, from the command line."""

import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import sample, train


def main(*argv) -> int:
  return sample.main([str(a) for a in argv])


@pytest.fixture(scope="module", params=[1, 2], ids=["one seed", "two seeds"])
def run(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  overrides = (f"seeds={request.param}", "steps=1", "evals=()")
  train.run(config_lib.load("experiments/diffusion/denoising.py:smoke", overrides), folder)
  return folder


def test_a_picture_beside_the_data(run, tmp_path, capsys):
  out = tmp_path / "samples.png"
  assert main("--workdir", run, "--out", out, "--n", 5) == 0
  assert out.read_bytes()[:4] == b"\x89PNG" and out.stat().st_size > 3000
  assert capsys.readouterr().out == f"{out}: 5 samples beside the data\n"


def test_a_picture_of_trajectories(run, tmp_path, capsys):
  out = tmp_path / "way.png"
  assert main("--workdir", run, "--trajectories", out, "--n", 5) == 0
  assert out.read_bytes()[:4] == b"\x89PNG" and out.stat().st_size > 3000
  assert capsys.readouterr().out == f"{out}: the way of some of them from noise\n"
  assert main("--workdir", run) == 2
  assert "give --out FILE.png, --trajectories FILE.png" in capsys.readouterr().err


def test_samples_are_those_of_the_evals(run):
  way, real = sample.samples(run, 5)
  made = way.states[-1]
  assert made.shape == real.shape == (5, 2) and np.isfinite(way.states).all()
  assert len(way.states) == len(way.sigmas) and way.sigmas[-1] == 0
  again, _ = sample.samples(run, 5)
  np.testing.assert_array_equal(made, again.states[-1])


def test_images_in_a_grid():
  x = np.stack([np.full((2, 3, 1), v) for v in (-1, -0.5, 0, 0.5, 7)])
  grid = sample.grid(x)
  assert grid.shape == (2, 9)  # three across; the last two are left over
  np.testing.assert_allclose(grid[0, ::3], [0, 0.25, 0.5])
  assert sample.grid(np.zeros((4, 2, 3, 3))).shape == (4, 6, 3)
  assert sample.grid(np.full((1, 2, 2, 1), 9.0)).max() == 1


def test_panels_of_images_and_points(tmp_path):
  rng = np.random.default_rng(0)
  panels = {str(i): rng.normal(size=(4, 2)) for i in range(7)}  # more than a row
  panels["images"] = rng.normal(size=(4, 8, 8, 3))
  sample.draw(panels, tmp_path / "a.png", title="All")
  assert (tmp_path / "a.png").stat().st_size > 3000


def test_mistakes_are_one_line_and_exit_code_2(tmp_path, capsys):
  out = tmp_path / "a.png"
  text = tmp_path / "text"
  text.mkdir()
  config_lib.save(config_lib.load("experiments/llm/sft.py:smoke"), text)
  for workdir, n, says in (
    (tmp_path / "none", 4, "none"),
    (text, 4, "is a run of llm.sft, which makes no samples"),
    (text, 0, "--n must be at least 1, got 0"),
  ):
    assert main("--workdir", workdir, "--out", out, "--n", n) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and error.count("\n") == 1
  assert not out.exists()


def test_a_run_without_a_checkpoint_shows_where_it_began(tmp_path):
  config = config_lib.load("experiments/diffusion/denoising.py:smoke")
  config_lib.save(config, tmp_path)
  way, real = sample.samples(tmp_path, 3)
  assert way.states.shape[1:] == real.shape
