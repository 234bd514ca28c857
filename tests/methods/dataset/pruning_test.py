"""Pruning: labels are what the teacher says of the chosen images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax.data import image_set
from distill_jax.evals import distilled
from distill_jax.methods.dataset import pruning
from distill_jax.models import convnet


def test_labels_are_the_given_teachers():
  config = config_lib.load(
    "experiments/dataset/pruning.py:smoke", ("per_class=3", "method.temperature=2.0")
  )
  teacher = convnet.init(config.models.teacher, (8, 8, 1), jax.random.key(5))
  real = jax.tree.map(jnp.asarray, image_set.whole(config))
  given = dict(real=real, teacher=teacher)
  state, frozen = pruning.make(config).init(jax.random.key(0), given)
  x, labels, kind, lr = distilled.as_trained(config, state["student"], frozen["real"])
  assert kind == "logits" and lr is None and x.shape == (30, 8, 8, 1)
  want = convnet.apply(config.models.teacher, teacher, x)[0] / 2
  np.testing.assert_allclose(labels, want, rtol=1e-5, atol=1e-6)
  hard = real.label[state["student"]["rows"]]
  np.testing.assert_array_equal(hard, np.repeat(np.arange(10), 3))


@pytest.mark.slow
def test_a_teacher_of_its_own_knows_most_images():
  config = config_lib.load("experiments/dataset/pruning.py:smoke", ("per_class=20",))
  config = config.copy_and_resolve_references().unlock()
  config.method.epochs, config.protocol.augment, config.protocol.lr = 30, (), 0.05
  real = jax.tree.map(jnp.asarray, image_set.whole(config))
  state, _ = jax.jit(pruning.make(config).init)(jax.random.key(0), dict(real=real))
  guess = np.argmax(state["student"]["labels"], axis=1)
  assert np.mean(guess == np.repeat(np.arange(10), 20)) > 0.8
