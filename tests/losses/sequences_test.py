"""Sums over sequences and over what follows a token."""

import jax.numpy as jnp
import numpy as np

from distill_jax.losses import sequences as seq
from distill_jax.losses.reduce import masked_mean, masked_sum

WHERE = jnp.array([[1, 1, 0], [0, 0, 0], [1, 1, 1]], bool)
X = jnp.array([[1.0, 2.0, jnp.nan], [jnp.inf, 0.0, 1.0], [4.0, 5.0, 6.0]])


def test_masked_entries_may_hold_anything():
  np.testing.assert_array_equal(seq.sequence_sum(X, WHERE), [3, 0, 15])
  np.testing.assert_array_equal(seq.sequence_mean(X, WHERE), [1.5, 0, 5])
  assert masked_mean(X, WHERE) == 18 / 5
  assert masked_sum(X, WHERE) == (18, 5)
  assert masked_mean(X, jnp.zeros_like(WHERE)) == 0
  assert masked_mean(X[2], jnp.array([1.0, 0.0, 0.5])) == 7 / 1.5


def test_what_follows():
  np.testing.assert_array_equal(seq.remaining(WHERE), [[2, 1, 0], [0, 0, 0], [3, 2, 1]])
  got = seq.discounted_returns(jnp.array([1.0, 2.0, 4.0]), discount=0.5)
  np.testing.assert_array_equal(got, [3, 4, 4])


def test_whiten_counts_only_what_counts():
  white = seq.whiten(jnp.where(WHERE, X, 100.0), where=WHERE)
  kept = white[WHERE]
  np.testing.assert_allclose([kept.mean(), kept.std(ddof=1)], [0, 1], atol=1e-6)


def test_shared_length_weights():
  chosen, rejected = seq.shared_length_weights(WHERE[2:], WHERE[:1], beyond=0.25)
  np.testing.assert_array_equal(chosen, [[1, 1, 0.25]])
  np.testing.assert_array_equal(rejected, [[1, 1, 0]])
