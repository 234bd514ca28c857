"""A set in a folder: networks are trained on what it holds, and it must be of these images."""

import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import train
from distill_jax.config import ConfigError
from distill_jax.data import image_set, soft_labels
from distill_jax.distilled import artifact
from distill_jax.evals import distilled
from distill_jax.mesh import make_mesh

CLASSES = 10


def config(folder, *overrides):
  given = (f"method.set={folder}", *overrides)
  return config_lib.load("experiments/dataset/judge.py:smoke", given)


def made(kind="hard", lr=None, images=2):
  rng = np.random.default_rng(0)
  n = images * CLASSES
  shapes = dict(logits=(n, CLASSES), per_epoch=(3, n, CLASSES))
  hard = np.repeat(np.arange(CLASSES, dtype=np.int32), images)
  soft = (
    rng.normal(size=shapes.get(kind, (n, CLASSES))).astype(np.float32) + 9 * np.eye(CLASSES)[hard]
  )
  labels = hard if kind == "hard" else np.float32(soft)
  x = rng.normal(size=(n, 8, 8, 1)).astype(np.float32)
  arrays = image_set.fitted(config("any"))
  return artifact.DistilledDataset(x, labels, kind, lr, arrays, {}, {})


def student(given):
  program = train.build(given, make_mesh(given.mesh))
  return program.init(program.keys[0], program.pretrained)[0]["student"]


@pytest.mark.parametrize("kind, lr", [("hard", None), ("logits", 0.03), ("per_epoch", None)])
def test_networks_are_trained_on_what_the_folder_holds(tmp_path, kind, lr):
  set_ = made(kind, lr)
  artifact.save(tmp_path, set_)
  given = config(tmp_path, f"label_kind={kind}")
  x, labels, found, rate = distilled.as_trained(given, student(given))
  np.testing.assert_array_equal(x, set_.images)
  np.testing.assert_array_equal(labels, set_.labels)
  assert found == kind and rate == (None if lr is None else pytest.approx(lr))


def test_a_run_with_labels_of_views(tmp_path):
  set_ = made()
  artifact.save(tmp_path / "set", set_)
  fields = soft_labels.describe(set_.images, classes=CLASSES, epochs=2, mix="mixup")
  label = lambda params, x: params * x.reshape(len(x), -1)[:, :CLASSES]  # noqa: E731
  soft_labels.write(tmp_path / "labels", fields, set_.images, label, np.float32(3))
  given = config(tmp_path / "set", f"method.views={tmp_path / 'labels'}")
  _, labels, kind, _ = distilled.as_trained(given, student(given))
  index, _ = soft_labels.whole(tmp_path / "labels", set_.images)
  assert kind == "views"
  np.testing.assert_array_equal(labels["index"], index)
  result = train.run(given, tmp_path / "run")
  assert 0 <= result["distilled/accuracy@0"] <= 1
  other = config(tmp_path / "set", f"method.views={tmp_path / 'labels'}")
  other.models.student.num_classes = 20
  with pytest.raises(ConfigError, match="not as many images of each of 20"):
    student(other)
  artifact.save(tmp_path / "changed", set_._replace(images=set_.images + 1))
  with pytest.raises(ConfigError, match="digest is"):
    student(config(tmp_path / "changed", f"method.views={tmp_path / 'labels'}"))


def test_what_is_refused(tmp_path):
  artifact.save(tmp_path / "soft", made("logits"))
  with pytest.raises(ConfigError, match="label_kind=logits"):
    student(config(tmp_path / "soft"))
  set_ = made()
  artifact.save(tmp_path / "mixed", set_._replace(labels=set_.labels[::-1].copy()))
  with pytest.raises(ConfigError, match="not as many images of each of 10"):
    student(config(tmp_path / "mixed"))
  artifact.save(tmp_path / "small", set_._replace(images=set_.images[:, :4]))
  with pytest.raises(ConfigError, match=r"images are \(4, 8, 1\), not \(8, 8, 1\)"):
    student(config(tmp_path / "small"))
  with pytest.raises(ConfigError, match="No file"):
    student(config(tmp_path / "none"))
  with pytest.raises(ConfigError, match="name the folder"):
    student(config(""))
