"""Labelled images: how digits are split, IDX files whole and broken, and batches."""

import gzip
import struct

import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax.config import ConfigError
from distill_jax.data import images


def config(**changes):
  given = config_lib.load("experiments/classifier/supervised.py:smoke")
  given.data.update(changes)
  return given


def idx(*shape, values=None, magic=b"\0\0\x08"):
  values = np.arange(np.prod(shape), dtype=np.uint8) if values is None else values
  return magic + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values.tobytes()


def test_digits_are_split_once_and_every_fifth_is_held_out():
  train, test = (images.load("digits", split) for split in ("train", "test"))
  assert train.x.shape == (1438, 8, 8, 1) and test.x.shape == (359, 8, 8, 1)
  assert train.x.dtype == np.float32 and train.label.dtype == np.int32
  assert train.x.min() == -1 and train.x.max() == 1
  both = np.concatenate([train.x, test.x]).reshape(1797, -1)
  sklearn = pytest.importorskip("sklearn.datasets").load_digits()
  np.testing.assert_array_equal(test.x[0, ..., 0], sklearn.images[4] / 8 - 1)
  np.testing.assert_array_equal(test.label, sklearn.target[4::5])
  assert len(np.unique(both, axis=0)) == 1797  # no image is in both
  assert np.bincount(test.label, minlength=10).min() > 20


def test_batches_are_as_the_spec_says_and_the_same_again():
  given = config()
  spec = images.spec(given)
  first, again = (next(iter(images.make(given))) for _ in range(2))
  for name, shape in spec.items():
    assert first[name].shape == shape.shape and first[name].dtype == shape.dtype
    np.testing.assert_array_equal(first[name], again[name])
  train = images.load("digits", "train")
  for x, label in zip(first["x"], first["label"], strict=True):
    assert any(np.array_equal(x, y) for y in train.x[train.label == label])


def test_validation_stops_at_n_or_at_the_end():
  assert len(images.validation(config(), 7)["x"]) == 7
  assert len(images.validation(config(), 10_000)["label"]) == 359
  with pytest.raises(ConfigError, match=r"data\.shape is \(28, 28, 1\), images of 'digits' have"):
    images.validation(config(shape=(28, 28, 1)), 7)


def test_an_unknown_source_is_refused():
  with pytest.raises(ConfigError, match=r"data\.source: no 'digit'\. Did you mean 'digits'"):
    images.load("digit", "train")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_files_gzipped_or_not(tmp_path, pack):
  file = tmp_path / "a.gz"
  file.write_bytes(pack(idx(2, 3, 4)))
  np.testing.assert_array_equal(images.read_idx(file), np.arange(24).reshape(2, 3, 4))


ZIPPED = gzip.compress(idx(2, 3), mtime=0)


@pytest.mark.parametrize(
  "data, says",
  [
    (None, "No file"),
    (b"", "is not an IDX file of bytes"),
    (b"\0\0\x08", "is not an IDX file of bytes"),
    (idx(4, magic=b"\0\0\x0d"), "is not an IDX file of bytes"),  # floats
    (b"<html>not found</html>", "is not an IDX file of bytes"),
    (b"\0\0\x08\0", "is not an IDX file of bytes"),  # of no axes
    (b"\0\0\x08\x09" + bytes(60), "is not an IDX file of bytes"),  # of nine
    (idx(2, 3)[:-1], r"has 5 bytes where its header says \(2, 3\)"),
    (idx(2, 3) + b"x", r"has 7 bytes where its header says \(2, 3\)"),
    (idx(2, 3)[:7], "ends within its header"),
    (b"\0\0\x08\x04" + b"\xff" * 16, "where its header says"),  # a size beyond any integer
    (ZIPPED[:-9], "is not a whole gzip file"),
    (ZIPPED[:-6] + b"abcdef", "is not a whole gzip file"),  # a wrong checksum
    (b"\x1f\x8bnonsense", "is not a whole gzip file"),
  ],
)
def test_a_broken_idx_file_is_one_clear_line(tmp_path, data, says):
  file = tmp_path / "train-images-idx3-ubyte.gz"
  if data is not None:
    file.write_bytes(data)
  with pytest.raises(ConfigError, match=says) as error:
    images.read_idx(file)
  assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(3,), (2, 1)])
def test_images_and_labels_have_to_match(tmp_path, shape):
  (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(idx(2, 4, 4))
  (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(*shape))
  with pytest.raises(ConfigError, match="do not match"):
    images._idx(tmp_path, "test")


def test_fashion_is_read_from_the_first_folder_there_is(tmp_path, monkeypatch):
  pixels = np.array([0, 255] * 8, np.uint8)
  (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(1, 4, 4, values=pixels)))
  (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(idx(1, values=np.array([9], np.uint8)))
  monkeypatch.setattr(images, "FASHION", ("/nowhere/at/all", str(tmp_path)))
  images.load.cache_clear()
  x, label = images.load("fashion", "train")
  assert x.shape == (1, 4, 4, 1) and label.tolist() == [9]
  np.testing.assert_array_equal(x.ravel(), [-1, 1] * 8)
  images.load.cache_clear()
