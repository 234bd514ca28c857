"""Decoupled distillation is forward KL, taken apart."""

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.losses.decoupled import decoupled_kd, standardize
from distill_jax.losses.divergences import forward_kl


def test_the_parts_make_up_forward_kl():
  s, t = jax.random.normal(jax.random.key(0), (2, 6))
  p_target = jax.nn.softmax(t)[2]
  got = decoupled_kd(s, t, jnp.int32(2), other_weight=float(1 - p_target))
  np.testing.assert_allclose(got, forward_kl(s, t), rtol=1e-5)


def test_masked_targets_two_classes_and_certain_teachers():
  s, t = jnp.array([[[1.0, 2.0]] * 3, [[50.0, -50.0], [0.0, 1.0], [3.0, 0.0]]])
  targets, where = jnp.array([0, -100, 1]), jnp.array([True, False, True])
  f = lambda s: decoupled_kd(s, t, targets, where=where)  # noqa: E731
  value, grad = f(s), jax.grad(lambda s: f(s).sum())(s)
  assert value[1] == 0 and jnp.isfinite(value).all() and jnp.isfinite(grad).all()


def test_standardize():
  x = standardize(5 + 3 * jax.random.normal(jax.random.key(0), (2, 50)))
  np.testing.assert_allclose(x.mean(-1), 0, atol=1e-5)
  np.testing.assert_allclose(x.std(-1, ddof=1), 1, rtol=1e-5)
