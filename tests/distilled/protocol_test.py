"""The protocol's updates against optax, and what it does to running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax.distilled import protocol as protocol_lib
from distill_jax.models import perceptron, resnet

X = jax.random.normal(jax.random.key(0), (6, 4, 4, 1))
LABEL = jnp.array([0, 1, 2, 0, 1, 2])


def protocol(**given):
  made = protocol_lib.default_config()
  made.update(dict(epochs=4, augment=(), lr=0.1) | given)
  return made


def small_resnet():
  given = resnet.default_config()
  given.update(dict(widths=(4,), blocks=(1,), stem="small", num_classes=3))
  return given


def by_hand(given, model, label_loss, updates):
  """Params after so many updates on the whole set; a tenth of the rate after half of them."""
  params = model.init(given, X.shape[1:], jax.random.split(jax.random.key(1), 3)[0])
  rate = optax.piecewise_constant_schedule(0.1, {updates // 2 + 1: 0.1})
  tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate, momentum=0.9))
  opt = tx.init(params)
  for _ in range(updates):
    gradient = jax.grad(lambda p: jnp.mean(label_loss(model.apply(given, p, X)[0])))(params)
    move, opt = tx.update(gradient, opt, params)
    params = optax.apply_updates(params, move)
  return params


@pytest.mark.parametrize("kind", protocol_lib.LOSSES)
def test_updates_are_those_of_optax(kind):
  given = perceptron.default_config()
  given.num_classes = 3
  soft = jax.random.normal(jax.random.key(2), (6, 3))
  labels = LABEL if kind == "hard" else soft
  want = by_hand(given, perceptron, lambda z: protocol_lib.loss_of(kind, z, labels), 4)
  got = protocol_lib.train(protocol(), given, X, labels, jax.random.key(1), kind=kind)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_running_statistics_follow_the_images_and_are_no_weights():
  given = small_resnet()
  start = resnet.init(given, X.shape[1:], jax.random.split(jax.random.key(1), 3)[0])
  args = (given, X, LABEL, jax.random.key(1))
  still = protocol_lib.train(protocol(lr=0.0, weight_decay=0.5), *args)
  want = start
  for _ in range(4):
    want = resnet.train_apply(given, want, X)[2]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), still, want)
  moved = protocol_lib.train(protocol(), *args)
  assert np.abs(moved["stem"]["kernel"] - start["stem"]["kernel"]).max() > 1e-3


def test_a_network_with_batch_norms_learns_its_set():
  given = small_resnet()
  params = protocol_lib.train(protocol(epochs=60), given, X, LABEL, jax.random.key(1))
  assert float(protocol_lib.accuracy(given, params, np.asarray(X), np.asarray(LABEL))) == 1
