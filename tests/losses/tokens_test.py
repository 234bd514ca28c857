"""Scores and selection of tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.losses import divergences as d
from distill_jax.losses import tokens as tk
from distill_jax.losses.reduce import masked_mean


def logits(rows=6):
  return 2 * jax.random.normal(jax.random.key(0), (2, rows, 5))


def test_scores_are_in_range():
  s, t = logits()
  assert jnp.allclose(tk.normalized_entropy(jnp.zeros((2, 5))), 1)
  far = tk.normalized_js(jnp.array([50.0, -50]), jnp.array([-50.0, 50]))
  np.testing.assert_allclose(far, 1, rtol=1e-5)
  for score in (tk.normalized_entropy(s), tk.normalized_js(s, t), tk.normalized_js(s, t, top_k=2)):
    assert ((score >= 0) & (score <= 1)).all()
  weights = tk.tip_weights(tk.normalized_entropy(s), tk.normalized_js(s, t), divergence_power=0.5)
  assert (jax.grad(lambda s: (tk.normalized_entropy(s) * weights).sum())(s) == 0).all()


def test_sampling_without_replacement_follows_the_weights():
  weights = jnp.array([0.0, 1.0, 2.0, 4.0])
  keys = jax.random.split(jax.random.key(0), 3000)
  drawn = jax.vmap(lambda k: tk.sample_tokens(k, weights, keep=1))(keys)
  np.testing.assert_allclose(drawn.mean(0), weights / 7, atol=0.03)
  assert tk.sample_tokens(keys[0], weights, keep=4).tolist() == [False, True, True, True]


def test_top_entropy_ignores_masked_tokens():
  values = jnp.array([[1.0, 2.0, 3.0, 99.0]])
  where = jnp.array([[True, True, True, False]])
  assert tk.top_entropy(values, share=0.4, where=where).tolist() == [[False, False, True, False]]


def test_weights_compose_with_a_divergence():
  s, t = logits()
  gate = tk.entropy_gate(t, threshold=1.0)
  both = masked_mean(d.reverse_kl(s, t) + gate * d.forward_kl(s, t))
  assert both >= masked_mean(d.reverse_kl(s, t))
  np.testing.assert_allclose(
    masked_mean(d.forward_kl(s, t), gate), d.forward_kl(s[gate > 0], t[gate > 0]).mean(), rtol=1e-5
  )


def test_balance_weights():
  flat, peaked = jnp.zeros((1, 4)), jnp.array([[9.0, 0, 0, 0]])
  assert [w.item() for w in tk.balance_weights(flat, peaked)] == [1, 2]
  assert [w.item() for w in tk.balance_weights(peaked, flat)] == [2, 1]
  assert [w.item() for w in tk.balance_weights(flat, flat)] == [1, 1]


def test_importance_weights():
  assert tk.clipped_importance(jnp.float32(90.0), jnp.float32(-90.0), cap=2.0) == 2.0
  w = tk.mixture_importance(jnp.log(0.5), jnp.log(0.1), teacher_share=0.2)
  np.testing.assert_allclose(w, 0.5 / (0.8 * 0.5 + 0.2 * 0.1), rtol=1e-6)


def test_prefix_weights_fall_from_the_first_token():
  where = jnp.array([[True, True, True, False], [False] * 4])
  w = tk.prefix_weights(jnp.array([[1.0, -1.0, 2.0, 9.0]] * 2), strength=0.5, where=where)
  np.testing.assert_allclose(w[0, :3], [1.5, 1.375, 1.25])
  assert jnp.isfinite(w).all()


def test_difference_sampling_keeps_the_order():
  score = tk.difference_score(jnp.array([1.0, 1.0, 1.0]), jnp.array([3.0, 2.0, 4.0]))
  assert tk.keep_top(score, keep=2).tolist() == [0, 2]
