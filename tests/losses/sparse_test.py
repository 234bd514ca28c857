"""Top-k, cached and sampled teachers against the full distributions they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import divergences as d
from distill_jax.losses import sparse
from distill_jax.losses.log_probs import kl, log_softmax

K, V = 3, 7


def setup(rows=4):
  student, teacher = 2 * jax.random.normal(jax.random.key(0), (2, rows, V))
  log_p, ids = jax.lax.top_k(log_softmax(teacher), K)
  return student, teacher, ids, log_p


def grouped(logits, ids):
  """Log-probabilities of the ids and of everything else together, by hand."""
  p = jax.nn.softmax(logits)
  inside = jnp.take_along_axis(p, ids, axis=-1)
  return jnp.log(jnp.concatenate([inside, 1 - inside.sum(-1, keepdims=True)], axis=-1))


def test_tail_is_the_divergence_of_the_grouped_distributions():
  student, teacher, ids, log_p = setup()
  got = sparse.cached_divergence(d.forward_kl, student, ids, log_p)
  want = kl(grouped(teacher, ids), grouped(student, ids))
  np.testing.assert_allclose(got, want, rtol=1e-4)
  assert (got <= d.forward_kl(student, teacher) + 1e-6).all()  # grouping loses information


def test_zero_is_the_full_divergence_from_a_teacher_without_the_rest():
  student, teacher, ids, log_p = setup()
  only = jnp.full_like(teacher, -jnp.inf)
  only = jnp.put_along_axis(only, ids, log_p, axis=-1, inplace=False)
  for divergence in (d.forward_kl, d.generalized_js, d.total_variation):
    got = sparse.cached_divergence(divergence, student, ids, log_p, rest="zero")
    np.testing.assert_allclose(got, divergence(student, only), rtol=1e-4)


def test_drop_ignores_the_student_outside():
  student, _, ids, log_p = setup()
  moved = student + jnp.where(jnp.any(jnp.arange(V) == ids[..., None], axis=-2), 0.0, 3.0)
  loss = [
    sparse.cached_divergence(d.forward_kl, s, ids, log_p, rest="drop") for s in (student, moved)
  ]
  np.testing.assert_allclose(*loss, rtol=1e-4)


@pytest.mark.parametrize("support", ["teacher", "student", "union"])
def test_all_ids_are_the_full_divergence(support):
  student, teacher, *_ = setup()
  got = sparse.top_k_divergence(
    d.generalized_js, student, teacher, k=V, support=support, rest="drop", temperature=2.0
  )
  np.testing.assert_allclose(got, d.generalized_js(student, teacher, temperature=2.0), rtol=1e-5)


@pytest.mark.parametrize("rest", ["tail", "zero", "drop"])
def test_masked_rows_and_peaked_rows(rest):
  student, _, ids, log_p = setup()
  where = jnp.array([True, False, True, True])
  student = student.at[1].set(jnp.nan).at[2].set(50.0 * jnp.eye(V)[0])

  def total(student):
    return sparse.cached_divergence(
      d.forward_kl, student, ids, log_p.at[1].set(jnp.nan), rest=rest, where=where
    )

  values, grad = total(student), jax.grad(lambda s: total(s).sum())(student)
  assert values[1] == 0 and (grad[1] == 0).all()
  assert jnp.isfinite(values).all() and jnp.isfinite(grad).all()


def test_padding_ids_do_not_count():
  student, _, ids, log_p = setup()
  padded, valid = jnp.pad(ids, [(0, 0), (0, 2)]), jnp.arange(K + 2) < K
  values = jnp.pad(log_p, [(0, 0), (0, 2)])
  got = sparse.cached_divergence(d.reverse_kl, student, padded, values, valid=valid)
  np.testing.assert_allclose(
    got, sparse.cached_divergence(d.reverse_kl, student, ids, log_p), rtol=1e-5
  )


def test_union_marks_repeats():
  ids, valid = sparse.union(jnp.array([1, 2]), jnp.array([2, 5]))
  assert ids[valid].tolist() == [1, 2, 5]


def test_decoupled_at_temperature_one_is_forward_kl_with_a_tail():
  student, _, ids, log_p = setup()
  binary, mass, inner = sparse.decoupled_top_k(student, ids, log_p)
  want = sparse.cached_divergence(d.forward_kl, student, ids, log_p)
  np.testing.assert_allclose(binary + mass * inner, want, rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sampled_targets_estimate_the_cross_entropy(temperature):
  student, teacher, *_ = setup()
  ids, weights = sparse.sample_targets(
    jax.random.key(1), teacher, samples=20_000, temperature=temperature
  )
  np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-4)
  got = sparse.sampled_cross_entropy(student, ids, weights)
  np.testing.assert_allclose(got, d.soft_cross_entropy(student, teacher), rtol=0.05)


def test_densify_is_a_distribution():
  _, _, ids, log_p = setup()
  dense = sparse.densify(ids, log_p, vocabulary=V)
  np.testing.assert_allclose(jnp.exp(dense).sum(-1), 1.0, rtol=1e-5)
  np.testing.assert_array_equal(jnp.take_along_axis(dense, ids, axis=-1), log_p)


def test_log_ratio_of_caches_with_different_ids():
  ids, other = jnp.array([0, 1, 2]), jnp.array([2, 0, 4])
  p, q = jnp.log(jnp.array([0.5, 0.2, 0.1])), jnp.log(jnp.array([0.4, 0.3, 0.1]))
  got = sparse.cached_log_ratio(ids, p, other, q)
  np.testing.assert_allclose(got, jnp.log(jnp.array([0.5 / 0.3, 0.2 / 0.1, 0.1 / 0.4])), rtol=1e-5)


def test_sparse_expectation():
  student, _, ids, _ = setup()
  q = jnp.take_along_axis(jax.nn.softmax(student), ids, axis=-1)
  values = jnp.array([1.0, -2.0, 3.0]) * jnp.ones_like(q)
  np.testing.assert_allclose(
    sparse.sparse_expectation(student, ids, values), (q * values).sum(-1), rtol=1e-5
  )


def test_an_unknown_rest_is_an_error():
  student, _, ids, log_p = setup()
  with pytest.raises(ValueError, match="rest must be"):
    sparse.cached_divergence(d.forward_kl, student, ids, log_p, rest="none")
