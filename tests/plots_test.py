"""The picture of a table: its pixels."""

import json

import numpy as np
import pytest

from distill_jax import plots
from distill_jax.tables import Column, Row, Table, slug

METRIC, OTHER = "language/bits_per_byte", "language/teacher_kl"
COLUMNS = (Column(METRIC, "bits per byte", ".3f", "lower"), Column(OTHER, "KL", ".2f"))
ROWS = (Row("start", "", reference=True), Row("cross-entropy", ""), Row("forward KL [ours]", ""))
TABLE = Table("A title", ROWS, COLUMNS, curves=(METRIC, OTHER))


def write_curve(folder, first):
  """Lines of a run; the second metric is missing in some and null in others."""
  folder.mkdir(parents=True)
  lines = [{"step": step, "seconds": 1.0, METRIC: first / (1 + step)} for step in range(4)]
  lines[1] |= {OTHER: None}
  lines[2] |= {OTHER: first}
  lines[3] |= {OTHER: 0.8 * first}
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def share(image, color) -> float:
  """The share of pixels of a color like "#4477AA"."""
  rgb = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
  return float((np.abs(image[..., :3] - rgb).max(-1) < 0.02).mean())


@pytest.mark.parametrize("seeds", [1, 2])
def test_each_row_has_a_curve_and_an_end_in_its_color(tmp_path, seeds):
  from matplotlib import image

  values = {"start": {METRIC: [3.0], OTHER: [2.0]}}
  for row, first in zip(ROWS[1:], (3.0, 2.6), strict=True):
    for seed in range(seeds):
      write_curve(tmp_path / slug(row.name) / str(seed), first + 0.1 * seed)
    ends = [first / 4 + 0.1 * seed for seed in range(seeds)]
    values[row.name] = {METRIC: ends, OTHER: ends}
  plots.draw(TABLE, values, tmp_path, seeds=seeds)
  pixels = image.imread(tmp_path / "table.png")
  height, width = pixels.shape[:2]
  assert min(height, width) > 800
  first, second, unused = plots.COLORS[:3]
  for rows in ((0.14, 0.56), (0.56, 1.0)):  # below the legend: curves, ends
    for columns in ((0.0, 0.5), (0.5, 1.0)):
      (top, bottom), (left, right) = (
        [int(part * size) for part in parts] for parts, size in ((rows, height), (columns, width))
      )
      panel = pixels[top:bottom, left:right]
      assert panel[..., :3].std() > 0.05
      assert min(share(panel, first), share(panel, second)) > 1e-4
  assert share(pixels, unused) == 0
