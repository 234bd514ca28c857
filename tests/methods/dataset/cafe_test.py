"""CAFE: its loss against NumPy, and when its network is drawn anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax.config import ConfigError
from distill_jax.data import image_set
from distill_jax.distilled import real as real_lib
from distill_jax.methods.dataset import cafe
from distill_jax.models import convnet

OVERRIDES = ("augment=()", "method.inner=2", "per_class=2")


def made():
  config = config_lib.load("experiments/dataset/cafe.py:smoke", OVERRIDES)
  method = cafe.make(config)
  state, frozen = method.init(jax.random.key(0), dict(real=image_set.whole(config)))
  return config, method, state, frozen


def test_the_loss_is_alignment_and_discrimination():
  config, method, state, frozen = made()
  key = jax.random.key(3)
  new, metrics = jax.jit(method.step)(state, frozen, {}, key)
  given, params = config.models.student, state["network"]["params"]
  x, label = real_lib.of_classes(jax.random.split(key, 4)[1], frozen["real"], 8)
  ours, theirs = (
    [np.asarray(f, np.float64).reshape(len(f), -1) for f in convnet.layers(given, params, images)]
    for images in (state["student"]["images"], x)
  )
  mean = lambda f: f.reshape(10, -1, f.shape[-1]).mean(axis=1)  # noqa: E731
  distance = [np.sum((mean(s) - mean(r)) ** 2) for s, r in zip(ours, theirs, strict=True)]
  logits = theirs[-1] @ mean(ours[-1]).T
  nats = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
  told = np.sum(nats - logits[np.arange(len(x)), np.asarray(label)])
  want = 0.1 * distance[0] + distance[1] + 0.01 * told
  np.testing.assert_allclose(metrics["loss"][0], want, rtol=1e-3)
  right = np.argmax(convnet.apply(given, params, x)[0], axis=1) == label
  np.testing.assert_allclose(new["network"]["seen"][-1], np.mean(right), rtol=1e-6)


def test_a_network_whose_accuracy_stands_still_is_drawn_anew():
  _, method, state, frozen = made()
  step, moved = jax.jit(method.step), []
  kernel = state["network"]["params"]["head"]["kernel"]
  for seen in (jnp.linspace(0.1, 0.2, 10), jnp.linspace(0.1, 0.12, 10)):
    network = dict(state["network"], seen=seen)
    new, _ = step(dict(state, network=network), frozen, {}, jax.random.key(1))
    moved.append(float(jnp.max(jnp.abs(new["network"]["params"]["head"]["kernel"] - kernel))))
  assert moved[1] > 3 * moved[0] > 0
  np.testing.assert_allclose(new["network"]["seen"][:9], jnp.linspace(0, 1, 10)[1:], rtol=1e-6)


def test_networks_that_hide_their_layers_are_refused():
  config = config_lib.load("experiments/dataset/cafe.py:smoke").copy_and_resolve_references()
  config.unlock().models.student.name = "perceptron"
  with pytest.raises(ConfigError, match="'perceptron' does not show its layers, convnet does"):
    cafe.make(config)
