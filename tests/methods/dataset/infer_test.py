"""INFER: what is trained on is made of what is stored, and of no more than the budget."""

import jax
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import train
from distill_jax.data import image_set
from distill_jax.distilled import squeeze
from distill_jax.methods.dataset import infer
from distill_jax.models import resnet


@pytest.mark.parametrize("ipc, base", [(1, 1), (2, 1), (5, 3), (10, 7)])
def test_every_class_has_the_same_compensators_and_the_budget_is_kept(ipc, base):
  given = config_lib.load(f"experiments/dataset/infer.py:smoke,ipc={ipc}", ["steps=1"])
  names = squeeze.names(given)
  read = {n: resnet.init(given.models[n], (8, 8, 1), jax.random.key(3)) for n in names}
  pretrained = dict(read, real=image_set.whole(given))
  method = infer.make(given)
  state, frozen = jax.jit(method.init)(jax.random.key(0), pretrained)
  state, _ = jax.jit(method.step)(state, frozen, {}, jax.random.key(1))
  u, images = state["compensators"], state["student"]["images"]
  assert u.shape == (3, base, 8, 8, 1) and images.shape == (10 * base * 4, 8, 8, 1)
  assert 10 * base + 3 * base <= 10 * ipc or ipc == 1
  by_class = images.reshape(10, 4, base, 8, 8, 1)
  np.testing.assert_array_equal(by_class[:, 0], frozen["images"])
  for m in range(3):
    added = np.clip(frozen["images"] + u[m], frozen["low"], frozen["high"])
    np.testing.assert_allclose(by_class[:, m + 1], added, atol=1e-6)
    assert np.abs(u[m]).max() > 0
  logits = [resnet.apply(given.models[n], read[n], images)[0] for n in names]
  expected = np.mean(logits, axis=0) / 5
  np.testing.assert_allclose(state["student"]["labels"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_digits_beat_random_selection(tmp_path):
  """Which reaches 0.92 at 10 images a class."""
  results = train.run(config_lib.load("experiments/dataset/infer.py:ipc=10"), tmp_path)
  accuracy = np.mean([v for name, v in results.items() if name.startswith("distilled/accuracy@")])
  assert accuracy > 0.93
