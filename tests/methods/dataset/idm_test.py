"""IDM: parts of images, the queue, and the loss against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax.data import image_set
from distill_jax.distilled import real as real_lib
from distill_jax.distilled import synthetic
from distill_jax.methods.dataset import idm
from distill_jax.models import convnet

OVERRIDES = ("augment=()", "models.student.depth=1")


def made(*overrides):
  config = config_lib.load("experiments/dataset/idm.py:smoke", (*OVERRIDES, *overrides))
  method = idm.make(config)
  real = jax.tree.map(jnp.asarray, image_set.whole(config))
  state, frozen = method.init(jax.random.key(0), dict(real=real))
  return config, method, state, frozen


def test_parts_are_the_quarters_at_full_size():
  x = np.arange(8.0).reshape(2, 2, 2, 1).repeat(3, axis=1).repeat(3, axis=2)  # 6 x 6
  parts = synthetic.parted(jnp.asarray(x), 2)
  assert parts.shape == (8, 6, 6, 1)
  np.testing.assert_allclose(parts, np.arange(8.0)[:, None, None, None] * np.ones((1, 6, 6, 1)))
  np.testing.assert_allclose(synthetic.joined(parts, 2), x, atol=1e-5)
  np.testing.assert_array_equal(synthetic.parted(jnp.asarray(x), 1), x)
  with pytest.raises(ValueError, match="images of 6 x 6 have no 4 x 4 equal parts"):
    synthetic.parted(jnp.asarray(x), 4)


@pytest.mark.slow
def test_the_loss_counts_labels_as_much_as_the_network_is_right():
  config, method, state, frozen = made("method.queue=1", "method.trained=1")
  key, accuracy = jax.random.key(3), 0.25
  queue = dict(state["queue"], accuracy=jnp.array([accuracy]))
  new, metrics = jax.jit(method.step)(dict(state, queue=queue), frozen, {}, key)
  params = jax.tree.map(lambda x: x[0], state["queue"]["params"])
  x, _ = real_lib.of_classes(jax.random.split(key, 5)[2], frozen["real"], config.real_per_class)
  images = synthetic.parted(state["student"]["images"], 2)
  assert len(images) == 40
  (logits, ours), (_, theirs) = (
    convnet.apply(config.models.student, params, batch) for batch in (images, x)
  )
  mean = lambda f: np.asarray(f, float).reshape(10, -1, f.shape[-1]).mean(axis=1)  # noqa: E731
  nats = -jax.nn.log_softmax(logits)[np.arange(40), np.repeat(np.arange(10), 4)]
  want = np.sum((mean(ours) - mean(theirs)) ** 2)
  want += 0.5 * accuracy * np.asarray(nats).reshape(10, 4).mean(axis=1).sum()
  np.testing.assert_allclose(metrics["loss"][0], want, rtol=1e-3)
  assert 0 <= new["queue"]["accuracy"][0] <= 1


def test_the_oldest_network_leaves_and_few_are_trained():
  _, method, state, frozen = made("method.queue=4", "method.trained=1", "method.interval=3")
  step = jax.jit(method.step)
  for t in range(7):
    before = np.asarray(state["queue"]["params"]["head"]["kernel"])
    state, _ = step(state, frozen, {}, jax.random.key(t))
    moved = np.abs(np.asarray(state["queue"]["params"]["head"]["kernel"]) - before).max(axis=(1, 2))
    replaced = {3: [1], 6: [2]}.get(t, [])
    assert list(np.flatnonzero(moved > 0.1)) == replaced, moved
    assert (moved > 0).sum() in (1, 1 + len(replaced))


def test_an_image_begins_as_four_small_real_ones():
  _, _, state, frozen = made()
  real = np.asarray(frozen["real"].x)[np.asarray(frozen["real"].label) == 0]
  small = real.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4))
  quarters = np.asarray(state["student"]["images"][0, ..., 0]).reshape(2, 4, 2, 4).swapaxes(1, 2)
  for quarter in quarters.reshape(4, 4, 4):
    assert np.abs(small - quarter).max(axis=(1, 2)).min() < 1.5  # antialiased otherwise
