"""Likelihoods of chunks and the divergences between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import alm


def test_chunks_sum_their_tokens_and_add_the_boundary_of_the_last():
  log_p = jnp.array([0.0, -1.0, -2.0, -4.0])
  alignment = jnp.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]], bool)
  np.testing.assert_array_equal(alm.chunk_log_likelihoods(log_p, alignment), [-1, -6, 0])
  space = jnp.array([-10.0, -20.0, -30.0, -40.0])
  got = alm.chunk_log_likelihoods(log_p, alignment, next_log_probs=space)
  np.testing.assert_array_equal(got, [-21, -46, 0])


@pytest.mark.parametrize(
  "f", [alm.reverse_binary_kl, alm.binary_kl_limit, alm.renyi, alm.absolute, alm.squared_log]
)
def test_zero_at_equality_positive_elsewhere(f):
  x = jnp.array([-0.01, -1.0, -30.0])
  np.testing.assert_allclose(f(x, x), 0, atol=1e-5)
  assert (f(x, x - 1) > 0).all()


def test_cross_entropy_has_its_minimum_at_the_teacher():
  grad = jax.grad(lambda s: alm.binary_cross_entropy(s, jnp.float32(-1.5)))(-1.5)
  np.testing.assert_allclose(grad, 0, atol=1e-5)


@pytest.mark.parametrize("x", [-1e-9, -1e-6, -1.0, -500.0])
def test_certain_and_impossible_chunks_are_finite(x):
  for f in (alm.binary_cross_entropy, alm.reverse_binary_kl, alm.renyi, alm.absolute):
    value, grad = jax.value_and_grad(f)(jnp.float32(x), jnp.float32(-2.0))
    assert jnp.isfinite(value) and jnp.isfinite(grad)


def test_log1mexp():
  x = np.array([-1e-6, -0.1, -0.7, -3.0, -20.0])
  np.testing.assert_allclose(alm.log1mexp(jnp.array(x)), np.log(-np.expm1(x)), rtol=2e-5)


def test_numbered_chunks_are_those_of_the_matrix():
  random = np.random.default_rng(0)
  log_probs, following = (jnp.asarray(-random.exponential(size=(2, 9))) for _ in range(2))
  chunks = jnp.array([[-1, 0, 0, 1, 2, 2, 2, 4, 9], [0, 1, 2, 3, 4, 5, 5, 5, 5]])
  matrix = chunks[..., None] == jnp.arange(5)
  for extra in (None, following):
    np.testing.assert_allclose(
      alm.numbered_chunk_log_likelihoods(log_probs, chunks, count=5, next_log_probs=extra),
      alm.chunk_log_likelihoods(log_probs, matrix, next_log_probs=extra),
      rtol=1e-6,
    )


def test_chunks_whose_end_does_not_count_join_the_next():
  chunks = jnp.array([[-1, 0, 0, 1, 2, 2, 3, 5]])
  ends = jnp.array([[True, False, True, False, True]])
  np.testing.assert_array_equal(alm.merge_chunks(chunks, ends), [[-1, 0, 0, 1, 1, 1, 2, 5]])
  np.testing.assert_array_equal(alm.merge_chunks(chunks, jnp.ones_like(ends)), chunks)
