"""What networks are trained on, and which results an eval of a distilled set has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax.config import ConfigError
from distill_jax.data import image_set
from distill_jax.distilled import synthetic
from distill_jax.evals import distilled


def config(*overrides, words=""):
  return config_lib.load(f"experiments/dataset/dm.py:smoke,ipc=2{words}", overrides)


def student(**more):
  images = jax.random.normal(jax.random.key(0), (20, 8, 8, 1))
  return dict(images=images, **more)


def test_rows_are_real_images_with_their_labels():
  given = config()
  real = jax.tree.map(jnp.asarray, image_set.whole(given))
  rows = jnp.array([3, 700, 1400])
  x, labels, kind, lr = distilled.as_trained(given, dict(rows=rows), real)
  np.testing.assert_array_equal(x, real.x[rows])
  np.testing.assert_array_equal(labels, real.label[rows])
  assert kind == "hard" and lr is None


def test_labels_are_those_of_the_set_or_the_class_alone():
  soft = jax.random.normal(jax.random.key(1), (20, 10))
  given = config("label_kind=logits")
  _, labels, kind, _ = distilled.as_trained(given, student(labels=soft))
  assert kind == "logits" and labels is soft
  given = config("label_kind=logits", "protocol.labels=hard")
  _, labels, kind, _ = distilled.as_trained(given, student(labels=soft))
  assert kind == "hard"
  np.testing.assert_array_equal(labels, np.repeat(np.arange(10), 2))


def test_the_learned_rate_is_used_where_the_protocol_says_so():
  given = student(log_lr=jnp.log(0.03))
  assert distilled.as_trained(config(), given)[3] is None
  rate = distilled.as_trained(config("protocol.learned_lr=True"), given)[3]
  np.testing.assert_allclose(rate, 0.03, rtol=1e-6)


def test_every_part_of_an_image_has_its_label():
  given = student()
  x, labels, _, _ = distilled.as_trained(config("parts=2"), given)
  np.testing.assert_array_equal(x, synthetic.parted(given["images"], 2))
  np.testing.assert_array_equal(labels, np.repeat(np.arange(10), 8))


def test_results_have_seeds_other_networks_and_validation():
  given = config("data.validation=5", "protocol.seeds=2", "protocol.epochs=1", words=",others")
  assert set(given.others) == {"perceptron", "vit", "resnet", "convnet_1", "convnet_3"}
  given = given.copy_and_resolve_references().unlock()
  for name in ("perceptron", "convnet_1", "convnet_3"):
    del given.others[name]
  given.others.vit.update(width=8, depth=1, heads=1)
  given.others.resnet.update(widths=(4,), blocks=(1,))
  evaluate = distilled.make(given)
  results = evaluate(dict(student=student()), {})
  networks = ("", "_vit", "_resnet")
  names = {f"accuracy{of}@{i}" for of in networks for i in (0, 1)}
  assert set(results) == names | {f"validation_accuracy{of}" for of in networks}
  assert all(0 <= value <= 1 for value in results.values())
  assert evaluate(dict(student=student()), {}) == results


def test_test_images_may_not_choose_a_checkpoint():
  with pytest.raises(ConfigError, match="chosen by validation images"):
    distilled.make(config("keep_best=1", "best_metric=distilled/accuracy@0"))
