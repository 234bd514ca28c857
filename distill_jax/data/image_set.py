"""All labelled images at once, preprocessed: for methods that draw from them inside the step.

The set itself reaches a method as `pretrained["real"]`; the batches are empty. Sources are those of
`data/images.py`. With `data.validation` so many training images of each class are held out, evenly
spread; test images are never trained on and never choose anything.
"""

import functools
from typing import Any

import numpy as np

from distill_jax.config import ConfigError
from distill_jax.data import images, nothing
from distill_jax.distilled import preprocessing
from distill_jax.distilled.real import Real

make, spec = nothing.make, nothing.spec  # batches are empty


def whole(config) -> Real:
  """The training images, ordered by class, without those of `data.validation`."""
  x, label = _split(config.data, "train")
  order = np.argsort(label, kind="stable")
  label = label[order]
  count = np.bincount(label, minlength=images.CLASSES.get(config.data.source, 0))
  if config.per_class > count.min():
    raise ConfigError(
      f"per_class {config.per_class} is more than the {count.min()} images of a class that "
      f"{config.data.source!r} has."
    )
  first = np.concatenate([[0], np.cumsum(count)[:-1]])
  arrays: Any = (x[order], label, first.astype(np.int32), count.astype(np.int32))  # of the host
  return Real(*arrays)


def held_out(config, split: str) -> tuple[np.ndarray, np.ndarray]:
  """Images and labels of `split`, test or validation; test has the first `eval_samples`."""
  x, label = _split(config.data, split)
  return (x[: config.eval_samples], label[: config.eval_samples]) if split == "test" else (x, label)


def fitted(config) -> preprocessing.Arrays:
  """The preprocessing's arrays, from the training images."""
  return _fitted(config.data.source, config.data.preprocess)


@functools.cache
def _fitted(source, kind):
  return preprocessing.fit(kind, images.load(source, "train").x)


def _split(data, split) -> tuple[np.ndarray, np.ndarray]:
  source = images.load(data.source, "test" if split == "test" else "train")
  if source.x.shape[1:] != tuple(data.shape):
    raise ConfigError(
      f"data.shape is {tuple(data.shape)}, images of {data.source!r} have {source.x.shape[1:]}."
    )
  rows = np.arange(len(source.x))
  if split != "test":
    held = _held(source.label, data.validation)
    rows = rows[held if split == "validation" else ~held]
  return preprocessing.apply(_fitted(data.source, data.preprocess), source.x[rows]), source.label[
    rows
  ]


def _held(label: np.ndarray, n: int) -> np.ndarray:
  """True for n rows of each class, evenly spread."""
  held = np.zeros(len(label), bool)
  for c in np.unique(label) if n else ():
    rows = np.flatnonzero(label == c)
    if n >= len(rows):
      raise ConfigError(f"data.validation {n}: class {c} has {len(rows)} images.")
    held[rows[np.linspace(0, len(rows) - 1, n).astype(int)]] = True
  return held
