"""Limits and identities of the alpha-beta divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import divergences as d
from distill_jax.losses.adaptive_kl import adaptive_kl, adaptive_kl_weights, head
from distill_jax.losses.alpha_beta import alpha_beta, clipped_alpha


def logits():
  return 2 * jax.random.normal(jax.random.key(0), (2, 3, 5))


def test_corners():
  s, t = logits()
  np.testing.assert_allclose(alpha_beta(s, t, alpha=1, beta=0), d.forward_kl(s, t), rtol=1e-5)
  np.testing.assert_allclose(alpha_beta(s, t, alpha=0, beta=1), d.reverse_kl(s, t), rtol=1e-5)
  gap = jax.nn.log_softmax(s) - jax.nn.log_softmax(t)
  np.testing.assert_allclose(alpha_beta(s, t, alpha=0, beta=0), (gap**2).sum(-1) / 2, rtol=1e-5)


@pytest.mark.parametrize(("alpha", "beta"), [(0.7, 0), (0, 0.7), (0.5, -0.5), (-0.4, 0.4)])
def test_the_limits_are_limits(alpha, beta):
  with jax.enable_x64(True):
    s, t = logits().astype(jnp.float64)
    near = alpha_beta(s, t, alpha=alpha + 1e-6, beta=beta + 1e-6)
    np.testing.assert_allclose(alpha_beta(s, t, alpha=alpha, beta=beta), near, rtol=1e-4)


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.7), (1, 1), (1, 0), (0, 0), (0.5, -0.5)])
def test_zero_at_equality_and_masks(alpha, beta):
  s, t = logits()
  np.testing.assert_allclose(alpha_beta(s, s, alpha=alpha, beta=beta), 0, atol=1e-6)
  bad = s.at[1].set(-jnp.inf), t.at[1].set(-jnp.inf)
  pad = [(0, 0), (0, 1)]
  padded = [jnp.pad(x, pad, constant_values=-jnp.inf) for x in bad]
  f = lambda s: alpha_beta(s, padded[1], alpha=alpha, beta=beta)  # noqa: E731
  value, grad = f(padded[0]), jax.grad(lambda s: f(s).sum())(padded[0])
  assert value[1] == 0 and jnp.isfinite(grad).all()
  np.testing.assert_allclose(value[0], alpha_beta(s, t, alpha=alpha, beta=beta)[0], rtol=1e-5)


@pytest.mark.parametrize(("alpha", "full"), [(1, d.forward_kl), (0, d.reverse_kl)])
def test_the_clipped_alpha_divergence_without_clipping(alpha, full):
  s, t = logits() / 2
  surrogate_grad = jax.grad(lambda s: clipped_alpha(s, t, alpha=alpha, clip=1e6)[0].sum())(s)
  np.testing.assert_allclose(clipped_alpha(s, t, alpha=alpha, clip=1e6)[1], full(s, t), rtol=1e-5)
  want = jax.grad(lambda s: full(s, t).sum())(s)
  np.testing.assert_allclose(surrogate_grad, want, rtol=1e-4, atol=1e-6)


def test_adaptive_kl_is_forward_in_the_head_and_reverse_in_the_tail():
  t = jnp.log(jnp.array([0.6, 0.3, 0.06, 0.04]))
  head_only = jnp.log(jnp.array([0.3, 0.6, 0.06, 0.04]))
  weights = adaptive_kl_weights(head_only, t, head_mass=0.8)
  np.testing.assert_allclose(weights, (1, 0), atol=1e-6)
  np.testing.assert_allclose(
    adaptive_kl(head_only, t, head_mass=0.8), d.forward_kl(head_only, t), rtol=1e-5
  )
  tail_only = jnp.log(jnp.array([0.6, 0.3, 0.04, 0.06]))
  np.testing.assert_allclose(
    adaptive_kl(tail_only, t, head_mass=0.8), d.reverse_kl(tail_only, t), rtol=1e-5
  )
  boundary = adaptive_kl_weights(head_only, t, head_mass=0.8, boundary_in_head=False)
  np.testing.assert_allclose(boundary, (0.5, 0.5), atol=1e-6)
  assert adaptive_kl(t, t) == 0


@pytest.mark.parametrize("mass", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("boundary", [True, False])
def test_the_head_is_that_of_sorted_probabilities_of_equals_the_first(mass, boundary):
  logits = jnp.round(3 * jax.random.normal(jax.random.key(0), (40, 60)))  # many equals
  p = jax.nn.softmax(logits.at[:, -5:].set(-jnp.inf))
  order = jnp.argsort(-p, axis=-1)
  ranked = np.asarray(jnp.take_along_axis(p, order, axis=-1), np.float64)
  held = ranked.cumsum(axis=-1)
  want = held - ranked < mass if boundary else held <= mass
  want[:, 0] = True
  got = np.asarray(jnp.take_along_axis(head(p, mass, boundary), order, axis=-1))
  np.testing.assert_array_equal(got, want)
  assert want.any(axis=-1).all() and not want.all()
