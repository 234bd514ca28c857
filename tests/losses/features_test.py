"""Distances of hidden states and rankings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import ranking
from distill_jax.losses.features import cosine_distance, mean_squared


def test_known_distances():
  x, y = jnp.array([[3.0, 4.0], [1.0, 0.0]]), jnp.array([[6.0, 8.0], [0.0, 2.0]])
  np.testing.assert_allclose(cosine_distance(x, y), [0, 1], atol=1e-6)
  np.testing.assert_allclose(mean_squared(x, y), [12.5, 2.5])


@pytest.mark.parametrize("f", [cosine_distance, mean_squared])
def test_zero_vectors_and_masks(f):
  x, y = jnp.array([[0.0, 0.0], [jnp.nan, 1.0]]), jnp.ones((2, 2))
  where = jnp.array([True, False])
  value, grad = f(x, y, where=where), jax.grad(lambda x: f(x, y, where=where).sum())(x)
  assert value[1] == 0 and jnp.isfinite(value).all() and jnp.isfinite(grad).all()
  with pytest.raises(ValueError, match="differ in shape"):
    f(x, y[:1])


def test_rankings_vanish_for_a_student_that_agrees():
  log_p = jnp.log(jnp.array([0.6, 0.3, 0.1]))
  ids = jnp.array([0, 1, 2])
  total, pairs = ranking.ranking_hinge(log_p, ids, log_p)
  np.testing.assert_allclose(total, 0, atol=1e-6)
  assert pairs == 3
  wrong, _ = ranking.ranking_logistic(-log_p, ids, log_p)
  right, _ = ranking.ranking_logistic(log_p, ids, log_p)
  assert wrong > right
  assert ranking.ranking_logistic(log_p, ids, jnp.zeros(3))[1] == 0  # ties rank nothing
