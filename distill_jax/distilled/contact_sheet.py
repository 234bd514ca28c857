"""A look at a distilled set: all of it in one picture."""

import pathlib

import numpy as np

from distill_jax import sample

MOST = 20  # images of a class


def write(file: pathlib.Path, pixels: np.ndarray, label: np.ndarray) -> None:
  """A PNG of images [N, H, W, C] in [-1, 1], a row for each class; channels that are no colours are
  averaged."""
  from matplotlib import image

  if pixels.shape[-1] not in (1, 3):
    pixels = pixels.mean(axis=-1, keepdims=True)
  rows = [pixels[label == c][:MOST] for c in range(int(label.max()) + 1)]
  columns = max(len(row) for row in rows)
  blank = np.full((columns, *pixels.shape[1:]), -1.0, np.float32)
  filled = [np.concatenate([row, blank[len(row) :]]) for row in rows]
  whole = sample.grid(np.concatenate(filled), columns)
  times = max(1, 56 // pixels.shape[1])  # pixels that can be seen
  whole = whole.repeat(times, axis=0).repeat(times, axis=1)
  image.imsave(file, whole, cmap="gray", vmin=0, vmax=1)
