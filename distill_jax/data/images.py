"""Labelled images: {"x": float32[B, H, W, C] in [-1, 1], "label": int32[B]}.

`config.data.source` is one of

  digits     optdigits, 1,797 images of 8 x 8, out of the scikit-learn package
  fashion    Fashion-MNIST, 70,000 images of 28 x 28: IDX files (Debian's dataset-fashion-mnist, or
             any folder with them), or else TFDS
  tfds:NAME  a dataset with fields image and label

Training and held-out images never mix: digits holds out every fifth image, the others their test
split. An image is the same at the same index everywhere.
"""

import functools
import gzip
import importlib.util
import pathlib
from typing import NamedTuple

import grain
import jax
import numpy as np

from distill_jax.config import ConfigError, did_you_mean
from distill_jax.data.text import shuffled

FASHION = ("/usr/share/datasets/fashion-mnist", "~/.cache/distill_jax/fashion-mnist")
CLASSES = dict(digits=10, fashion=10)


class Images(NamedTuple):
  x: np.ndarray  # float32 [N, H, W, C] in [-1, 1]
  label: np.ndarray  # int32 [N]


def make(config) -> grain.IterDataset:
  """Batches without end, this process's share of each."""
  return shuffled(config, _Rows(load(config.data.source, "train")), lambda row: row)


def spec(config) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of one global batch.

  Raises:
    ConfigError: the images have another shape than data.shape says.
  """
  b = config.batch_size
  return dict(
    x=jax.ShapeDtypeStruct((b, *config.data.shape), np.float32),
    label=jax.ShapeDtypeStruct((b,), np.int32),
  )


def validation(config, n: int) -> dict[str, np.ndarray]:
  """The first n held-out images, all if there are fewer."""
  images = load(config.data.source, "test")
  if images.x.shape[1:] != tuple(config.data.shape):
    raise ConfigError(
      f"data.shape is {tuple(config.data.shape)}, images of {config.data.source!r} have "
      f"{images.x.shape[1:]}."
    )
  return dict(x=images.x[:n], label=images.label[:n])


@functools.cache
def load(source: str, split: str) -> Images:
  """The images of `split`, train or test."""
  if source == "digits":
    return _digits(split)
  if source.startswith("tfds:"):
    return _tfds(source.removeprefix("tfds:"), split)
  if source != "fashion":
    raise ConfigError(
      f"data.source: no {source!r}." + did_you_mean(source, ("digits", "fashion", "tfds:NAME"))
    )
  for folder in map(pathlib.Path, FASHION):
    if folder.expanduser().is_dir():
      return _idx(folder.expanduser(), split)
  return _tfds("fashion_mnist", split)


def _digits(split: str) -> Images:
  found = importlib.util.find_spec("sklearn")
  if found is None or found.origin is None:
    raise ConfigError("data.source 'digits' is in scikit-learn: pip install 'distill_jax[data]'.")
  file = pathlib.Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
  with gzip.open(file, "rt") as text:
    rows = np.loadtxt(text, delimiter=",")
  held = np.arange(len(rows)) % 5 == 4
  rows = rows[held if split == "test" else ~held]
  x = rows[:, :-1].reshape(-1, 8, 8, 1) / 8 - 1  # 0 to 16
  return Images(x.astype(np.float32), rows[:, -1].astype(np.int32))


def _idx(folder: pathlib.Path, split: str) -> Images:
  prefix = "train" if split == "train" else "t10k"
  images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
  labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
  if images.ndim != 3 or labels.shape != images.shape[:1]:
    raise ConfigError(f"{folder}: {images.shape} images and {labels.shape} labels do not match.")
  return Images(_scaled(images[..., None]), labels.astype(np.int32))


def read_idx(file: pathlib.Path) -> np.ndarray:
  """An IDX file of bytes, gzipped or not; its size is checked against its header.

  Raises:
    ConfigError: it is not there, or not what its header says.
  """
  if not file.is_file():
    raise ConfigError(f"No file {file}.")
  data = file.read_bytes()
  try:
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
  except (OSError, EOFError) as error:
    raise ConfigError(f"{file} is not a whole gzip file ({error}): fetch it again.") from None
  if len(data) < 4 or data[:3] != b"\0\0\x08" or not 1 <= data[3] <= 4:
    raise ConfigError(f"{file} is not an IDX file of bytes.")
  begin = 4 + 4 * data[3]
  if len(data) < begin:
    raise ConfigError(f"{file} ends within its header: fetch it again.")
  shape = tuple(int(n) for n in np.frombuffer(data[4:begin], ">u4"))
  if len(data) - begin != np.prod(shape, dtype=object):
    raise ConfigError(
      f"{file} has {len(data) - begin} bytes where its header says {shape}: fetch it again."
    )
  return np.frombuffer(data, np.uint8, offset=begin).reshape(shape)


def _tfds(name: str, split: str) -> Images:
  try:
    import tensorflow_datasets as tfds
  except ImportError:
    raise ConfigError("TFDS is not installed: pip install 'distill_jax[data]'.") from None
  try:
    rows = tfds.data_source(name, split=split)
  except Exception as error:
    line = str(error).strip().splitlines()[0]
    raise ConfigError(f"TFDS has no {name!r} with a split {split!r} here: {line}") from None
  x = np.stack([row["image"] for row in rows])
  return Images(_scaled(x), np.array([row["label"] for row in rows], np.int32))


def _scaled(x: np.ndarray) -> np.ndarray:
  """Bytes to [-1, 1]; floats, such as latents, as they are."""
  return x.astype(np.float32) / 127.5 - 1 if x.dtype == np.uint8 else x.astype(np.float32)


class _Rows:
  """A random-access source of grain's."""

  def __init__(self, images: Images):
    self.images = images

  def __len__(self):
    return len(self.images.x)

  def __getitem__(self, i):
    return dict(x=self.images.x[i], label=self.images.label[i])

  def __repr__(self):
    return "images"
