"""Policy losses against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.losses import divergences as d
from distill_jax.losses import policy


def test_clipping_by_hand():
  ratio, adv = jnp.array([0.5, 1.0, 2.0, 0.5, 2.0, 9.0]), jnp.array([1.0, 1, 1, -1, -1, -1])
  loss = policy.clipped_surrogate(jnp.log(ratio), adv)
  np.testing.assert_allclose(loss, [-0.5, -1, -1.2, 0.8, 2, 9], rtol=1e-6)
  dual = policy.clipped_surrogate(jnp.log(ratio), adv, dual=3.0)
  np.testing.assert_allclose(dual, [-0.5, -1, -1.2, 0.8, 2, 3], rtol=1e-6)
  capped = policy.clipped_surrogate(jnp.log(ratio), adv, cap=4.0)
  np.testing.assert_allclose(capped, [-0.5, -1, -1.2, 0.8, 2, 4], rtol=1e-6)


def test_on_policy_every_surrogate_has_the_gradient_of_reinforce():
  log_p, adv = jnp.array([[-1.0, -2.0, -0.5]]), jnp.array([[1.0, -2.0, 0.5]])
  old, where = log_p, jnp.ones((1, 3), bool)
  ones = jnp.ones_like(log_p)
  surrogates = [
    lambda x: policy.clipped_surrogate(x - old, adv),
    lambda x: policy.soft_clip(x - old, adv),
    lambda x: policy.weighted_log_prob(x, ones, adv),
    lambda x: policy.weighted_log_prob(x, policy.gamma_weights(x - old, adv, where=where), adv),
    lambda x: policy.clipped_surrogate(
      policy.token_level(policy.sequence_log_ratio(x - old, where=where), x), adv
    ),
  ]
  for f in surrogates:
    np.testing.assert_allclose(jax.grad(lambda x, f=f: f(x).sum())(log_p), -adv, rtol=1e-5)


def test_sequence_ratio_ignores_padding_and_empty_sequences():
  log_ratio, where = jnp.array([[1.0, 3.0, 99.0], [1.0, 1.0, 1.0]]), jnp.array([[1, 1, 0], [0] * 3])
  np.testing.assert_allclose(policy.sequence_log_ratio(log_ratio, where=where), [[2], [0]])
  adv = jnp.array([[-1.0], [-1.0]])
  mask = policy.off_policy_mask(-log_ratio, adv, threshold=1.0, where=where)
  assert mask.tolist() == [[False], [True]]


def test_sampled_estimates_are_right_on_average():
  s, t = jax.random.normal(jax.random.key(0), (2, 5))
  q, log_q, log_p = jax.nn.softmax(s), jax.nn.log_softmax(s), jax.nn.log_softmax(t)
  np.testing.assert_allclose((q * policy.k3(log_p, log_q)).sum(), d.reverse_kl(s, t), rtol=1e-5)
  fixed = jax.lax.stop_gradient(q)
  grad = jax.grad(lambda s: (fixed * policy.sampled_kl(jax.nn.log_softmax(s), log_p)).sum())(s)
  np.testing.assert_allclose(grad, jax.grad(lambda s: d.reverse_kl(s, t))(s), atol=1e-6)


def test_acceptance_reward_has_the_gradient_of_total_variation():
  s, t = jax.random.normal(jax.random.key(1), (2, 3, 6))
  reward = policy.acceptance_reward(s, t)
  got = jax.grad(lambda s: -policy.expected_value(s, reward).sum())(s)
  want = jax.grad(lambda s: d.total_variation(s, t).sum())(s)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_the_normalised_reward_is_centred_and_masked():
  s, t = jax.random.normal(jax.random.key(1), (2, 3, 6))
  where = jnp.array([True, True, False])
  s = s.at[2].set(jnp.nan)
  reward, mean, deviation = policy.normalize_reward(s, policy.acceptance_reward(s, t), where=where)
  centred = policy.expected_value(s, reward, where=where)
  np.testing.assert_allclose(centred.sum(), 0, atol=1e-5)
  assert 0 < mean < 1 and deviation > 0
  same, _, none = policy.normalize_reward(t, jnp.zeros_like(t), where=where)
  assert none == 0 and (same == 0).all()


def test_distillation_advantage():
  p, old, base = jnp.array([-1.0]), jnp.array([-2.0]), jnp.array([-4.0])
  assert policy.distillation_advantage(p, old) == 1
  assert policy.distillation_advantage(p, old, base) == 1
  assert policy.distillation_advantage(p, old, base, strength=2.0) == 4


def test_reweighting_keeps_the_sign():
  adv, log_ratio = jnp.array([1.0, -1.0, 1.0]), jnp.array([50.0, 50.0, -50.0])
  got = policy.reweight_advantages(adv, log_ratio, sign=jnp.sign(adv), mix=0.5, clip=0.2)
  np.testing.assert_allclose(got, [1.1, -0.9, 0.9], rtol=1e-6)
