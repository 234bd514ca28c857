"""DM: the same bits twice, and its loss against class means in NumPy."""

import jax
import numpy as np

from distill_jax import config as config_lib
from distill_jax.data import image_set
from distill_jax.distilled import real as real_lib
from distill_jax.methods.dataset import dm
from distill_jax.models import convnet

OVERRIDES = ("per_class=2", "models.student.depth=1", "augment=()")


def run(steps):
  config = config_lib.load("experiments/dataset/dm.py:smoke", OVERRIDES)
  method = dm.make(config)
  state, frozen = jax.jit(method.init)(jax.random.key(0), dict(real=image_set.whole(config)))
  step, metrics = jax.jit(method.step), {}
  for t in range(steps):
    state, metrics = step(state, frozen, {}, jax.random.fold_in(jax.random.key(1), t))
  return config, state, frozen, metrics


def test_the_same_config_and_seed_give_the_same_bits():
  for steps in (0, 3):
    images = [np.asarray(run(steps)[1]["student"]["images"]) for _ in range(2)]
    np.testing.assert_array_equal(*images)


def test_the_loss_is_the_distance_of_class_means():
  config, state, frozen, _ = run(0)
  key = jax.random.key(5)
  _, metrics = jax.jit(dm.make(config).step)(state, frozen, {}, key)
  of_network, of_images, _ = jax.random.split(key, 3)
  params = convnet.init(config.models.student, (8, 8, 1), of_network)
  x, _ = real_lib.of_classes(of_images, frozen["real"], config.real_per_class)
  ours, theirs = (
    np.asarray(convnet.apply(config.models.student, params, images)[1], np.float64)
    for images in (state["student"]["images"], x)
  )
  means = [f.reshape(10, -1, f.shape[-1]).mean(axis=1) for f in (ours, theirs)]
  want = np.sum((means[0] - means[1]) ** 2)
  np.testing.assert_allclose(metrics["loss"][0], want, rtol=1e-4)
