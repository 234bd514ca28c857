"""Distances between vocabularies of different sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import cross_tokenizer as ct
from distill_jax.losses import divergences as d


def probs(*shape, seed=0):
  return jax.nn.softmax(jax.random.normal(jax.random.key(seed), shape))


def test_sorted_l1_ignores_names_of_ids_and_padding():
  p = probs(3, 6)
  shuffled = jnp.pad(p[:, ::-1], [(0, 0), (2, 1)])
  np.testing.assert_allclose(ct.sorted_l1(p, shuffled), 0, atol=1e-6)
  np.testing.assert_allclose(ct.sorted_l1(jnp.array([1.0]), jnp.array([0.5, 0.5])), 1)


def test_masked_positions():
  s, t = jax.random.normal(jax.random.key(0), (2, 2, 5))
  where = jnp.array([True, False])
  grad = jax.grad(lambda s: ct.uld(s, t[:, :3], where=where).sum())(s.at[1].set(jnp.nan))
  assert jnp.isfinite(grad).all() and (grad[1] == 0).all()


@pytest.mark.parametrize(("base", "at", "other"), [("first", 0, 1), ("last", 1, 0)])
def test_a_merged_group_is_exact_for_what_was_read(base, at, other):
  p, ids = probs(3, 4), jnp.array([2, 1, 3])
  merged = ct.merge_groups(p, ids, jnp.array([0, 0, 1]), count=2, base=base)
  np.testing.assert_allclose(merged[0, ids[at]], p[0, 2] * p[1, 1], rtol=1e-6)
  np.testing.assert_allclose(merged[0], p[at] * p[other, ids[other]], rtol=1e-6)
  np.testing.assert_array_equal(merged[1], p[2])


def test_measures_of_full_distributions_are_divergences():
  q, p = probs(3, 5), probs(3, 5, seed=1)
  for beta in (0, 0.3, 1):
    want = d.generalized_js(jnp.log(q), jnp.log(p), beta=beta)
    np.testing.assert_allclose(ct.measure_js(q, p, beta=beta), want, rtol=1e-4, atol=1e-6)


def test_hybrid_of_equal_vocabularies_is_the_matched_part():
  q, p = probs(2, 4), probs(2, 4, seed=1)
  ids = jnp.arange(4)
  np.testing.assert_allclose(ct.hybrid_uld(q, p, ids, ids), ct.measure_js(q, p), rtol=1e-5)
  half = ct.hybrid_uld(q, p, ids[:2], ids[:2], matched_weight=0.0, unmatched_weight=1.0)
  np.testing.assert_allclose(half, ct.sorted_l1(q[:, 2:], p[:, 2:]), rtol=1e-5)


def test_an_unknown_base_is_an_error():
  with pytest.raises(ValueError, match="base must be"):
    ct.merge_groups(probs(2, 3), jnp.zeros(2, int), jnp.arange(2), count=2, base="middle")
