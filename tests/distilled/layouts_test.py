"""Files of others: written, read again, and refused when they are not what they should be."""

import sys

import numpy as np
import pytest

from distill_jax.config import ConfigError
from distill_jax.data import images
from distill_jax.distilled import artifact, layouts, preprocessing


def digits(kind="hard", preprocess="standardize", lr=None):
  """Two real images of each class."""
  given = images.load("digits", "train")
  rows = np.concatenate([np.flatnonzero(given.label == c)[:2] for c in range(10)])
  arrays = preprocessing.fit(preprocess, given.x)
  label = given.label[rows]
  labels = label if kind == "hard" else 3 * np.eye(10, dtype=np.float32)[label]
  x = preprocessing.apply(arrays, given.x[rows])
  return artifact.DistilledDataset(x, labels, kind, lr, arrays, {}, dict(data="digits"))


@pytest.mark.parametrize(
  "layout, kind, preprocess, lr",
  [
    ("vico", "hard", "standardize", None),
    ("mtt", "hard", "zca", 0.03),
    ("mtt", "logits", "standardize", 0.03),
  ],
)
def test_tensors_there_and_back(tmp_path, layout, kind, preprocess, lr):
  torch = pytest.importorskip("torch")
  given = digits(kind, preprocess, lr)
  layouts.write(layout, tmp_path / "theirs", given)
  back = layouts.read(layout, tmp_path / "theirs", "digits", preprocess)
  np.testing.assert_allclose(back.images, given.images, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(back.labels, given.labels)
  assert back.label_kind == kind and back.lr == (None if lr is None else pytest.approx(lr))
  artifact.save(tmp_path / "ours", back)
  artifact.load(tmp_path / "ours", expect=given.preprocessing)
  file = tmp_path / "theirs" if layout == "vico" else tmp_path / "theirs" / "images_best.pt"
  stored = torch.load(file, weights_only=True)
  stored = stored["data"][0][0] if layout == "vico" else stored
  assert stored.shape == (20, 1, 8, 8) and stored.dtype == torch.float32


def test_the_latest_of_numbered_files(tmp_path):
  torch = pytest.importorskip("torch")
  for n in (5, 40):
    torch.save(torch.full((10, 1, 8, 8), float(n)), tmp_path / f"images_{n}.pt")
    torch.save(torch.arange(10), tmp_path / f"labels_{n}.pt")
  back = layouts.read("mtt", tmp_path, "digits", "standardize")
  assert back.images[0, 0, 0, 0] == 40 and back.labels.dtype == np.int32


def test_no_code_is_read(tmp_path):
  torch = pytest.importorskip("torch")
  torch.save(dict(data=print), tmp_path / "a.pt")
  with pytest.raises(ConfigError, match=r"is not a \.pt file of tensors"):
    layouts.read("vico", tmp_path / "a.pt", "digits", "standardize")
  torch.save(dict(images=torch.zeros(2)), tmp_path / "b.pt")
  with pytest.raises(ConfigError, match=r"has no data=\[\[images, labels\], \.\.\]"):
    layouts.read("vico", tmp_path / "b.pt", "digits", "standardize")


def test_constants_of_the_authors_in_our_pixels():
  """(p - mean) / std of pixels in [0, 1] is what our preprocessing makes of 2 p - 1."""
  arrays = layouts._arrays("tfds:cifar10", "standardize")
  p = np.random.default_rng(0).uniform(size=(2, 4, 4, 3)).astype(np.float32)
  mean, std = (np.array(x) for x in layouts.CONSTANTS["tfds:cifar10"])
  np.testing.assert_allclose(
    preprocessing.apply(arrays, 2 * p - 1), (p - mean) / std, rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize("preprocess", preprocessing.KINDS)
def test_pictures_there_and_back(tmp_path, preprocess):
  given = digits(preprocess=preprocess)
  layouts.write("sre2l", tmp_path, given)
  assert sorted(p.name for p in tmp_path.iterdir()) == [f"new{c:03d}" for c in range(10)]
  assert (tmp_path / "new003" / "class003_id001.png").is_file()
  back = layouts.read("sre2l", tmp_path, "digits", preprocess)
  pixels = [preprocessing.invert(s.preprocessing, s.images) for s in (back, given)]
  np.testing.assert_allclose(*pixels, atol=1.01 / 255 + 1e-3)
  np.testing.assert_array_equal(back.labels, given.labels)


def test_pictures_that_do_not_fit(tmp_path):
  from PIL import Image

  (tmp_path / "a").mkdir()
  with pytest.raises(ConfigError, match=r"has no folders with \.png"):
    layouts.read("sre2l", tmp_path, "digits", "none")
  Image.new("RGB", (9, 8)).save(tmp_path / "a" / "x.png")
  with pytest.raises(ConfigError, match=r"x\.png is \(9, 8\), images are \(8, 8\)"):
    layouts.read("sre2l", tmp_path, "digits", "none")
  (tmp_path / "a" / "x.png").write_bytes(b"no picture")
  with pytest.raises(ConfigError, match="is not a whole picture"):
    layouts.read("sre2l", tmp_path, "digits", "none")


def test_without_torch_one_line_says_how_to_get_it(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  (tmp_path / "images_best.pt").write_bytes(b"")
  for layout, path in (("vico", tmp_path / "images_best.pt"), ("mtt", tmp_path)):
    with pytest.raises(ConfigError, match=r"torch is not installed: pip install 'distill_jax\[pa"):
      layouts.read(layout, path, "digits", "standardize")


def test_labels_that_a_layout_cannot_hold(tmp_path):
  pytest.importorskip("torch")
  with pytest.raises(ConfigError, match="--to vico: it has hard labels, this set logits"):
    layouts.write("vico", tmp_path / "a.pt", digits("logits"))
