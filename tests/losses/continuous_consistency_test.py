"""Tangents, their normalisation and the loss of continuous-time consistency models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import continuous_consistency as cc


def arrays(count, batch=2):
  return jax.random.normal(jax.random.key(0), (count, batch, 2, 2, 3))


@pytest.mark.parametrize("batch", [1, 3])
def test_warm_up_begins_with_the_teachers_term(batch):
  f, v, x, jvp = arrays(4, batch)
  t = jnp.linspace(0.2, 1.4, batch)
  cos, sin = (g(t)[:, None, None, None] for g in (jnp.cos, jnp.sin))
  start = cc.scm_tangent(f, v, x, jvp, t, warmup=0.0)
  np.testing.assert_allclose(start, -(cos**2) * (f - v), rtol=1e-5, atol=1e-6)
  whole = start - cos * sin * x - jvp
  np.testing.assert_allclose(cc.scm_tangent(f, v, x, jvp, t), whole, rtol=1e-4, atol=1e-6)
  rcm = cc.scm_tangent(f, v, x, jvp, t, rcm=True)
  np.testing.assert_allclose(rcm, whole, rtol=1e-4, atol=1e-5)
  other = cc.scm_tangent(f, v, x, jvp, t, warmup=0.0, rcm=True)
  np.testing.assert_allclose(other, -cos * (f - v) - jvp, rtol=1e-4, atol=1e-6)


def test_warm_up_may_be_traced_and_sigma_data_scales():
  f, v, x, jvp = arrays(4)
  t = jnp.array([0.3, 1.2])
  got = jax.jit(lambda r: cc.scm_tangent(f, v, x, jvp, t, warmup=r))(0.25)
  np.testing.assert_allclose(
    got, cc.scm_tangent(f, v, x, jvp, t, warmup=0.25), rtol=1e-5, atol=1e-6
  )
  scaled = cc.scm_tangent(f, 0.5 * v, 0.5 * x, jvp, t, sigma_data=0.5)
  np.testing.assert_allclose(scaled, cc.scm_tangent(f, v, x, jvp, t) / 2, rtol=1e-4, atol=1e-6)


def test_normalised_lengths():
  (g,) = arrays(1, 3)
  g = g * jnp.array([1e-30, 1.0, 1e10])[:, None, None, None]
  small, middle, large = jnp.linalg.norm(cc.normalised(g).reshape(3, -1), axis=-1)
  length = jnp.linalg.norm(g[1])
  np.testing.assert_allclose([small, middle, large], [0, length / (length + 0.1), 1], rtol=1e-5)
  spread = jnp.sqrt(jnp.mean(jnp.square(cc.normalised(g, root_mean_square=True)[2])))
  np.testing.assert_allclose(spread, 1, rtol=1e-5)
  np.testing.assert_array_equal(cc.normalised(jnp.zeros_like(g)), 0)


def test_the_gradient_of_the_loss_is_the_tangent():
  f, g = arrays(2)
  weight = jnp.array([0.5, 3.0])
  grad = jax.grad(lambda f: cc.scm(f, g, weight=weight).sum())(f)
  want = -2 * weight[:, None, None, None] * g / g[0].size
  np.testing.assert_allclose(grad, want, rtol=1e-5, atol=1e-6)


def test_the_log_variance_settles_at_the_log_of_the_weighted_error():
  f, g = arrays(2)
  weight = jnp.array([0.5, 3.0])
  at = jnp.log(cc.scm(f, g, weight=weight))
  slope = jax.grad(lambda u: cc.scm(f, g, weight=weight, log_variance=u).sum())
  np.testing.assert_allclose(slope(at), 0, atol=1e-6)
  assert jnp.all(slope(at - 1) < 0) and jnp.all(slope(at + 1) > 0)


def test_prior_weight_is_one_over_the_noise_level():
  sigma = jnp.array([0.002, 0.5, 80.0])
  angle = jnp.arctan2(sigma, 0.5)
  np.testing.assert_allclose(cc.prior_weight(angle, sigma_data=0.5), 1 / sigma, rtol=1e-4)


def test_an_example_with_a_nan_is_left_out():
  f, g = arrays(2, 3)
  f, g = f.at[0, 0, 0, 0].set(jnp.nan), g.at[1, 1, 0, 2].set(jnp.nan)

  def loss(f):
    network, tangent = cc.without_nan(f, g)
    return cc.scm(network, cc.normalised(tangent))

  np.testing.assert_array_equal(loss(f)[:2], 0)
  np.testing.assert_allclose(loss(f)[2:], cc.scm(f[2:], cc.normalised(g[2:])), rtol=1e-6)
  grad = jax.grad(lambda f: loss(f).sum())(f)
  assert jnp.isfinite(grad).all() and jnp.all(grad[:2] == 0) and jnp.abs(grad[2]).max() > 0


def test_no_gradient_flows_into_tangents_or_derivatives():
  f, v, x, jvp = arrays(4)
  t = jnp.array([0.3, 1.2])
  grad = jax.grad(lambda f: jnp.sum(cc.scm_tangent(f, v, x, jvp, t) ** 2))(f)
  np.testing.assert_array_equal(grad, 0)
  on_output, on_derivative = jax.grad(lambda f, df: cc.continuous(f, df).sum(), argnums=(0, 1))(
    f, v
  )
  np.testing.assert_array_equal(on_output, -v)
  np.testing.assert_array_equal(on_derivative, 0)


def test_the_step_in_angle_ends_where_the_line_through_data_and_noise_does():
  x0, z = arrays(2)
  t, then = jnp.array([1.5, 0.4]), jnp.array([0.7, 0.0])
  at = lambda t: jnp.cos(t)[:, None, None, None] * x0 + jnp.sin(t)[:, None, None, None] * z  # noqa: E731
  got = cc.trig_step(at(t), cc.trigflow_velocity(x0, z, t), t - then)
  np.testing.assert_allclose(got, at(then), atol=1e-6)
