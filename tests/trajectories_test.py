"""Pictures of trajectories: which states they show, and that every kind of sampler can be drawn."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from distill_jax import trajectories
from distill_jax.evals.samples import Trajectory


def way(states, *shape, n=3):
  rng = np.random.default_rng(0)
  return Trajectory(rng.normal(size=(states, n, *shape)), np.linspace(80, 0, states))


@pytest.fixture
def figure(monkeypatch):
  """The last figure, which is left open."""
  monkeypatch.setattr(plt, "close", lambda _: None)
  yield plt.gcf
  monkeypatch.undo()
  plt.close("all")


def test_points_go_by_arrow_in_one_step_and_by_line_in_several(figure, tmp_path):
  panels = {"one": way(2, 2), "several": way(5, 2), "particles": way(1, 2)}
  trajectories.draw(panels, np.zeros((4, 2)), tmp_path / "a.png", title="All")
  assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
  one, several, particles = figure().axes
  assert len(one.collections) == 1 and one.collections[0].N == 3  # arrows
  lines = [line for line in several.lines if len(line.get_xdata()) == 5]
  assert len(lines) == 3 and not several.collections
  np.testing.assert_array_equal(lines[1].get_xdata(), panels["several"].states[:, 1, 0])
  assert [line.get_label() for line in particles.lines] == ["data", "sample"]
  assert [text.get_text() for text in figure().legends[0].texts] == ["data", "noise", "sample"]
  assert "arrows" in figure().get_suptitle() and figure().get_suptitle().startswith("All")


def test_an_arrow_points_at_its_sample(figure, tmp_path):
  given = Trajectory(np.array([[[0.0, 1.0]], [[3.0, 5.0]]]), np.array([80.0, 0.0]))
  trajectories.draw({"": given}, np.ones((2, 2)), tmp_path / "a.png")
  arrow = figure().axes[0].collections[0]
  np.testing.assert_allclose([arrow.X, arrow.Y], [[0.0], [1.0]])
  np.testing.assert_allclose([arrow.U, arrow.V], [[3.0 - 0.018], [4.0 - 0.024]])  # a dot shorter


@pytest.mark.parametrize("channels", [1, 3])
def test_images_have_a_row_each_and_columns_from_noise_to_sample(figure, tmp_path, channels):
  trajectories.draw(
    {"two": way(2, 6, 4, channels), "many": way(19, 6, 4, channels, n=20)},
    np.zeros((4, 6, 4, channels)),
    tmp_path / "a.png",
  )
  two, many = figure().axes
  sigmas = [[label.get_text() for label in axis.get_xticklabels()] for axis in (two, many)]
  assert sigmas[0] == ["80", "0"]
  assert len(sigmas[1]) == 8 and sigmas[1][0] == "80" and sigmas[1][-1] == "0"
  assert two.images[0].get_array().shape[:2] == (3 * 8, 2 * 6)  # with a border of one
  assert many.images[0].get_array().shape[:2] == (8 * 8, 8 * 6)
  shown = np.asarray(two.images[0].get_array()).reshape(3, 8, 2, 6, -1)[1, 1:-1, :, 1:-1]
  wanted = way(2, 6, 4, channels).states[:, 1].transpose(1, 0, 2, 3)
  np.testing.assert_allclose(shown, np.clip(wanted / 2 + 0.5, 0, 1))
