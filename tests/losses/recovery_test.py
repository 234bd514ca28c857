"""Losses of recovered images: matched statistics, known variations, curricula and votes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import recovery as r


@pytest.mark.parametrize("shape", [(1, 4, 4, 3), (5, 3), (2, 3, 3, 3)])
def test_matched_statistics_are_at_distance_zero(shape):
  x = jax.random.normal(jax.random.key(0), shape)
  axes = tuple(range(x.ndim - 1))
  mean, variance = jnp.mean(x, axis=axes), jnp.var(x, axis=axes)
  value, gradient = jax.value_and_grad(r.batch_norm_distance)(x, mean, variance)
  assert value == 0 and not jnp.any(gradient)
  moved = r.batch_norm_distance(x, mean + 2, variance - 3)
  np.testing.assert_allclose(moved, (2 + 3) * 3**0.5, rtol=1e-5)


def test_one_pixel_has_no_variance():
  got = r.batch_norm_distance(jnp.array([[1.0, 2.0]]), jnp.zeros(2), jnp.array([3.0, 4.0]))
  np.testing.assert_allclose(got, 5 + 5**0.5, rtol=1e-6)


def test_the_first_layer_weighs_more():
  distances = [jnp.array(1.0), jnp.array(2.0), jnp.array(4.0)]
  assert r.batch_norm_total(distances) == 16
  assert r.batch_norm_total(distances, first=1.0) == 7
  assert r.batch_norm_total(distances[:1], first=3.0) == 3


@pytest.mark.parametrize("order", [1, 2])
def test_a_constant_image_has_no_variation(order):
  variation = lambda x: r.total_variation(x, order=order)  # noqa: E731
  value, gradient = jax.value_and_grad(variation)(jnp.ones((1, 3, 3, 2)))
  assert value == 0 and not jnp.any(gradient)


def test_the_variation_of_a_ramp():
  """Rows rise by 1: horizontal 0, vertical and diagonal differences of size 1."""
  x = jnp.broadcast_to(jnp.arange(3.0)[None, :, None, None], (2, 3, 4, 1))
  np.testing.assert_allclose(r.total_variation(x, order=1), 3)
  np.testing.assert_allclose(r.total_variation(x), 16**0.5 + 2 * 12**0.5, rtol=1e-6)
  np.testing.assert_allclose(r.total_variation(3 * x), 3 * r.total_variation(x), rtol=1e-6)
  with pytest.raises(ValueError, match="order 3"):
    r.total_variation(x, order=3)


def test_image_norm():
  x = jnp.stack([jnp.full((2, 2, 1), 3.0), jnp.zeros((2, 2, 1))])
  np.testing.assert_allclose(r.image_norm(x), [6, 0])
  assert jnp.all(jnp.isfinite(jax.grad(lambda x: jnp.mean(r.image_norm(x)))(x)))


def test_recovery_adds_the_statistics():
  logits, labels = jnp.array([[0.0, 0.0], [jnp.log(3.0), 0.0]]), jnp.array([1, 0])
  want = (np.log(2) + np.log(4 / 3)) / 2
  np.testing.assert_allclose(r.cross_entropy(logits, labels), want, rtol=1e-6)
  np.testing.assert_allclose(r.recovery(logits, labels, 50.0), want + 0.5, rtol=1e-6)


def test_votes():
  accuracies = jnp.array([70.0, 65.0, 0.0])
  np.testing.assert_allclose(r.committee_weights(accuracies, temperature=jnp.inf), 1 / 3)
  weights = r.committee_weights(accuracies)
  np.testing.assert_allclose(weights[0] / weights[1], np.e, rtol=1e-5)
  np.testing.assert_allclose(r.committee_weights(accuracies[:1]), 1)
  logits = jax.random.normal(jax.random.key(0), (3, 2, 4))
  want = sum(w * z for w, z in zip(weights, logits, strict=True))
  np.testing.assert_allclose(r.committee(logits, weights), want, rtol=1e-5)


def test_committee_of_one_opinion():
  loss = r.committee(jnp.full(3, 2.5), r.committee_weights(jnp.array([1.0, 20.0, 3.0])))
  np.testing.assert_allclose(loss, 2.5, rtol=1e-6)


@pytest.mark.parametrize("mode", ["linear", "cosine"])
def test_the_curriculum_falls_from_whole_images_to_small_crops(mode):
  crop = jax.jit(lambda step: r.least_crop(step, steps=100, mode=mode, milestone=0.5))
  share = crop(jnp.arange(100))
  assert share[0] == 1 and jnp.all(jnp.diff(share[:51]) < 0)
  np.testing.assert_allclose(share[25], (1 + 0.08) / 2, rtol=1e-5)
  np.testing.assert_allclose(share[50:], 0.08, rtol=1e-6)


def test_curricula_at_the_edges():
  np.testing.assert_allclose(r.least_crop(jnp.arange(3), steps=3, milestone=0.0), 0.08, rtol=1e-6)
  step = r.least_crop(jnp.arange(4), steps=4, mode="step", milestone=0.5)
  np.testing.assert_allclose(step, [1, 1, 0.08, 0.08], rtol=1e-6)
  with pytest.raises(ValueError, match=r"'hard'.*cosine"):
    r.least_crop(0, steps=4, mode="hard")
