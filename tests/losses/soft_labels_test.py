"""Compressed labels, mixtures and the loss on stored logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import soft_labels as s


def test_hard_and_smoothed_labels():
  index = jnp.array([[2], [0]])
  hard = s.expanded(index, jnp.ones((2, 1)), num_classes=3)
  np.testing.assert_array_equal(hard, jnp.eye(3)[jnp.array([2, 0])])
  smooth = s.expanded(index, jnp.full((2, 1), 0.7), num_classes=3)
  np.testing.assert_allclose(smooth, [[0.15, 0.15, 0.7], [0.7, 0.15, 0.15]], rtol=1e-6)


@pytest.mark.parametrize("renormalize", [True, False])
def test_the_best_of_a_distribution(renormalize):
  p = jax.nn.softmax(jax.random.normal(jax.random.key(0), (4, 6)))
  value, index = jax.lax.top_k(p, 6)
  whole = s.expanded(index, value, num_classes=6, renormalize=renormalize)
  np.testing.assert_allclose(whole, p, rtol=1e-5)
  part = s.expanded(index[:, :2], value[:, :2], num_classes=6, renormalize=renormalize)
  np.testing.assert_allclose(jnp.sum(part, axis=1), 1, rtol=1e-6)
  rest = jnp.min(part, axis=1)
  want = 0 if renormalize else (1 - jnp.sum(value[:, :2], axis=1)) / 4
  np.testing.assert_allclose(rest, want, rtol=1e-5, atol=1e-7)


def test_labels_of_nothing_stay_finite():
  zero = s.expanded(jnp.array([[0, 1]]), jnp.zeros((1, 2)), num_classes=3, renormalize=True)
  np.testing.assert_array_equal(zero, 0)
  with pytest.raises(ValueError, match="3 probabilities of 2 classes"):
    s.expanded(jnp.array([[0, 1, 2]]), jnp.ones((1, 3)), num_classes=2)


def test_cross_entropy_is_least_at_the_labels():
  labels = jax.nn.softmax(jax.random.normal(jax.random.key(0), (3, 5)))
  loss = lambda z: jnp.sum(s.cross_entropy(z, labels))  # noqa: E731
  np.testing.assert_allclose(jax.grad(loss)(jnp.log(labels)), 0, atol=1e-6)
  entropy = -jnp.sum(labels * jnp.log(labels), axis=1)
  np.testing.assert_allclose(s.cross_entropy(jnp.log(labels), labels), entropy, rtol=1e-5)


def test_an_impossible_class_of_label_zero_counts_nothing():
  logits, labels = jnp.array([[0.0, 0.0, -jnp.inf]]), jnp.array([[1.0, 0.0, 0.0]])
  value, gradient = jax.value_and_grad(lambda z: s.cross_entropy(z, labels)[0])(logits)
  np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
  assert jnp.all(jnp.isfinite(gradient))


def test_each_example_has_its_share():
  x, y = jnp.ones((3, 2, 2, 1)), jnp.zeros((3, 2, 2, 1))
  got = s.mixed(x, y, jnp.array([0.0, 0.25, 1.0]))
  np.testing.assert_allclose(got[:, 0, 0, 0], [0, 0.25, 1])
  np.testing.assert_allclose(s.mixed(x[..., 0, 0], y[..., 0, 0], 0.3), 0.3)


@pytest.mark.parametrize(
  ("center", "share", "want"),
  [
    ((4, 4), 0.75, (2, 6, 2, 6)),  # a side of 5 is cut to 4
    ((0, 9), 0.75, (0, 2, 7, 10)),
    ((3, 3), 1.0, (3, 3, 3, 3)),
    ((4, 5), 0.0, (0, 8, 0, 10)),
  ],
)
def test_boxes(center, share, want):
  box = s.cut_box(center, share, size=(8, 10))
  np.testing.assert_array_equal(box, want)
  x, y = jnp.ones((2, 8, 10, 3)), jnp.zeros((2, 8, 10, 3))
  np.testing.assert_allclose(jnp.mean(s.pasted(x, y, box)), s.kept_share(box, size=(8, 10)))


def test_each_example_has_its_box():
  share = jnp.array([0.2, 0.6, 0.9])
  center = jnp.array([1, 5, 3]), jnp.array([6, 0, 3])
  boxes = s.cut_box(center, share, size=(7, 7))
  x, y = jax.random.normal(jax.random.key(0), (2, 3, 7, 7, 2))
  got = s.pasted(x, y, boxes)
  for k in range(3):
    np.testing.assert_array_equal(got[k : k + 1], s.pasted(x[k : k + 1], y[k : k + 1], boxes[k]))
  kept = jnp.mean(got == x, axis=(1, 2, 3))
  np.testing.assert_allclose(kept, s.kept_share(boxes, size=(7, 7)), rtol=1e-6)


def test_stored_logits_are_learnt_up_to_a_constant():
  stored = 5 * jax.random.normal(jax.random.key(0), (4, 6))
  np.testing.assert_allclose(s.stored_kl(stored + 3, stored), 0, atol=1e-6)
  other = s.stored_kl(-stored, stored, temperature=2.0)
  p, q = jax.nn.softmax(stored / 2), jax.nn.softmax(-stored / 2)
  np.testing.assert_allclose(other, jnp.sum(p * jnp.log(p / q), axis=1), rtol=1e-4)


def test_pruned_labels_count_nothing():
  stored = jnp.array([[1.0, 2.0], [jnp.nan, 0.0]])
  where = jnp.array([True, False])
  loss = lambda z: jnp.sum(s.stored_kl(z, stored, where=where))  # noqa: E731
  value, gradient = jax.value_and_grad(loss)(jnp.array([[2.0, 0.0], [1.0, 1.0]]))
  assert value > 0 and jnp.any(gradient[0]) and not jnp.any(gradient[1])


def test_shrinking_is_a_higher_temperature_of_the_teacher():
  logits, stored = jax.random.normal(jax.random.key(0), (2, 3, 4))
  smoothed = 0.9 * stored + 0.1 / 4  # the authors' form
  got = s.stored_kl(logits, stored, shrink=0.1)
  np.testing.assert_allclose(got, s.stored_kl(logits, smoothed), rtol=1e-3, atol=1e-8)
