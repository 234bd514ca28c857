"""Pictures of how samplers go from noise to samples.

Points: a line for each of a few dozen samples through all states, over the data; an arrow where
there is one step. Images: a row for each of a few samples, a column for each state, noise first.
States are as `evals.samples.trajectory` scales them, so noise is as large as data at every level.
"""

import pathlib
import textwrap
from typing import Any

import numpy as np

from distill_jax.evals.samples import Trajectory
from distill_jax.plots import COLORS, INK, PALE

POINTS, IMAGES, STATES = 24, 8, 8  # how many are drawn at most; states of images
NOISE, SAMPLE, WAY, DATA = PALE, INK, "#4477AA", "#CCCCCC"
SCALE = "Each state x is scaled to the size of the data, x / sqrt(1 + (sigma / sigma_data)^2)."
OF_POINTS = (
  "A state is what a step starts from, added noise included. Lines are ways of samples through all"
  " states, arrows where there is one step."
)
OF_IMAGES = (
  "A row is a sample, a column a state, with its sigma below: noise first, the sample last."
  f" Of more than {STATES} states, {STATES} evenly spaced ones are drawn."
)


def draw(
  panels: dict[str, Trajectory], real: np.ndarray, out: pathlib.Path, *, title: str = ""
) -> None:
  """One panel for each trajectory.

  Args:
    panels: name -> states [S, N, 2] of points or [S, N, H, W, C] of images, and their levels.
    real: data, [M, 2] or [M, H, W, C]; the cloud behind points.
    out: a .png file.
    title: above a line or two of what is seen.
  """
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  points = real.ndim == 2
  columns, side = min(len(panels), 6), 2.6 if len(panels) > 1 else 5.2
  width = max(side * columns, 5.2)
  rows = -(-len(panels) // columns)
  figure, axes = plt.subplots(
    rows, columns, figsize=(width, (side + 0.2) * rows + 0.6), squeeze=False, layout="constrained"
  )
  for axis, (name, way) in zip(axes.flat, panels.items(), strict=False):
    axis.set_title(name, fontsize=9)
    if points:
      _points(axis, way, real)
      axis.axis(_frame([real, *(w.states[0, :POINTS] for w in panels.values())]))
    else:
      _images(axis, way)
  for axis in axes.flat[len(panels) :]:
    axis.axis("off")
  if points:
    # particles have no noise: the legend is that of the panel with most in it
    legends = [axis.get_legend_handles_labels() for axis in axes.flat]
    handles = max(legends, key=lambda legend: len(legend[0]))
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
  caption = textwrap.wrap(f"{SCALE} {OF_POINTS if points else OF_IMAGES}", int(width * 14.5))
  lines = [*([title, ""] if title else []), *caption]
  figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=9)
  figure.savefig(out, dpi=130)
  plt.close(figure)


def _points(axis, way: Trajectory, real: np.ndarray) -> None:
  states = np.asarray(way.states)[:, :POINTS]
  start, end = states[0], states[-1]
  axis.plot(*real.T, ".", ms=1.5, color=DATA, label="data", zorder=1)
  if len(states) == 2:
    length = np.linalg.norm(end - start, axis=1, keepdims=True)
    gap = 0.03 * np.abs(real).max()  # of the dot's size
    arrow = (end - start) * np.maximum(1 - gap / np.maximum(length, 1e-9), 0)
    units: Any = dict(angles="xy", scale_units="xy", scale=1)
    axis.quiver(*start.T, *arrow.T, width=0.003, headwidth=6, color=WAY, zorder=2, **units)
  elif len(states) > 2:
    axis.set_prop_cycle(color=COLORS)
    axis.plot(states[..., 0], states[..., 1], ".-", lw=0.8, ms=2, zorder=2)
  if len(states) > 1:
    axis.plot(*start.T, "o", ms=3.5, mfc="white", color=NOISE, label="noise", zorder=3)
  axis.plot(*end.T, ".", ms=6, color=SAMPLE, label="sample", zorder=4)
  axis.set(aspect="equal", xticks=[], yticks=[])


def _frame(clouds):
  """Low x, high x, low y, high y of all points, with a margin."""
  low = np.min([x.min(axis=0) for x in clouds], axis=0)
  high = np.max([x.max(axis=0) for x in clouds], axis=0)
  margin = 0.12 * (high - low).max()  # ways may lead farther out
  return [low[0] - margin, high[0] + margin, low[1] - margin, high[1] + margin]


def _images(axis, way: Trajectory) -> None:
  from distill_jax import sample

  count = len(way.states)
  shown = np.unique(np.linspace(0, count - 1, min(count, STATES)).round().astype(int))
  states = np.asarray(way.states)[shown, :IMAGES]
  tiles = sample.framed(states.swapaxes(0, 1).reshape(-1, *states.shape[2:]))
  axis.imshow(sample.grid(tiles, len(shown)), cmap="gray", vmin=0, vmax=1)
  width = tiles.shape[2]
  axis.set_xticks((np.arange(len(shown)) + 0.5) * width - 0.5)
  axis.set_xticklabels([f"{sigma:.2g}" for sigma in way.sigmas[shown]], fontsize=6)
  axis.set_yticks([])
  axis.tick_params(length=0)
  axis.spines[:].set_visible(False)
