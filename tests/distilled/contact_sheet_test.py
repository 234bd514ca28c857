"""The picture of a set: a row for each class."""

import numpy as np

from distill_jax.distilled import contact_sheet


def test_rows_are_classes(tmp_path):
  from matplotlib import image

  label = np.array([0, 2, 2, 0, 2])  # class 1 has no image
  values = np.array([1.0, 0.0, 0.0, 1.0, 0.0], np.float32)
  pixels = np.broadcast_to(values[:, None, None, None], (5, 8, 8, 1))
  contact_sheet.write(tmp_path / "a.png", pixels, label)
  seen = image.imread(tmp_path / "a.png")[..., 0]
  assert seen.shape == (3 * 56, 3 * 56)
  cells = seen[28::56, 28::56]
  np.testing.assert_allclose(cells, [[1, 1, 0], [0, 0, 0], [0.5, 0.5, 0.5]], atol=0.01)


def test_colours_and_many_images(tmp_path):
  rng = np.random.default_rng(0)
  contact_sheet.write(tmp_path / "a.png", rng.uniform(-2, 2, (60, 32, 32, 3)), np.arange(60) % 2)
  assert (tmp_path / "a.png").stat().st_size > 10_000
