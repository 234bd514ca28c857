"""The protocol's updates against optax, and what it does to running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax.data import soft_labels, views
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


def small_perceptron():
  given = perceptron.default_config()
  given.num_classes = 3
  return given


@pytest.mark.parametrize("kind", ("hard", "logits", "regression"))
def test_updates_are_those_of_optax(kind):
  given = small_perceptron()
  soft = jax.random.normal(jax.random.key(2), (6, 3))
  labels = LABEL if kind == "hard" else soft
  want = by_hand(given, perceptron, lambda z: protocol_lib.loss_of(kind, z, labels), 4)
  got = protocol_lib.train(protocol(), given, X, labels, jax.random.key(1), kind=kind)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_labels_of_each_epoch_begin_again():
  given, key = small_perceptron(), jax.random.key(1)
  soft = jax.random.normal(jax.random.key(2), (2, 6, 3))
  of = lambda labels, epochs: protocol_lib.train(  # noqa: E731
    protocol(epochs=epochs), given, X, labels, key, kind="per_epoch"
  )
  want, got = of(jnp.tile(soft, (2, 1, 1)), 4), of(soft, 4)
  jax.tree.map(np.testing.assert_array_equal, want, got)
  one = of(soft, 1)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
    one,
    protocol_lib.train(protocol(epochs=1), given, X, soft[0], key, kind="logits"),
  )


@pytest.mark.parametrize("mix", views.MIXES)
def test_networks_meet_the_views_that_were_labelled_under_their_labels(mix, tmp_path):
  """All classes are kept in 16 bits, so labels are the teacher's to rounding: a network that begins
  as the teacher has no gradient but weight decay's."""
  given, key = small_perceptron(), jax.random.key(1)
  images = np.asarray(X)
  teacher = perceptron.init(given, X.shape[1:], jax.random.split(key, 3)[0])
  apply = lambda params, x: perceptron.apply(given, params, x)[0]  # noqa: E731
  fields = soft_labels.describe(images, classes=3, epochs=2, bits=16, mix=mix, seed=5)
  soft_labels.write(tmp_path, fields, images, apply, teacher)
  index, log_p = soft_labels.whole(tmp_path, images)
  assert index.shape == (2, 6, 3)

  def trained(index, log_p, **protocol_given):
    labels = dict(index=jnp.asarray(index), log_p=jnp.asarray(log_p))
    how = dict(kind="views", manifest=fields)
    made = protocol(weight_decay=0.0, epochs=5, **protocol_given)
    return protocol_lib.train(made, given, X, labels, key, **how)

  for batch_size in (6, 2):
    same = trained(index, log_p, batch_size=batch_size)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), same, teacher)
  other = trained(index[::-1], log_p[::-1])  # the labels of the other epoch
  far = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), other, teacher)
  assert max(jax.tree.leaves(far)) > 3e-3


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
