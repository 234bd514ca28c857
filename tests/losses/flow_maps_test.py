"""MeanFlow, shortcut and rectified-flow losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import flow_maps as fm
from distill_jax.losses.consistency import mean_squared


def arrays(count, batch=2):
  return jax.random.normal(jax.random.key(0), (count, batch, 2, 2, 3))


@pytest.mark.parametrize("batch", [1, 3])
def test_at_r_equal_to_t_meanflow_is_flow_matching(batch):
  u, v, du = arrays(3, batch)
  t = jnp.linspace(0.0, 1.0, batch)
  target = fm.meanflow_target(v, du, t, t)
  np.testing.assert_array_equal(target, v)
  np.testing.assert_allclose(
    fm.meanflow(u, target, p=0.0), mean_squared(u, v) * u[0].size, rtol=1e-5
  )


def test_the_interval_is_clipped_and_warmed_up():
  v, du = arrays(2)
  t, r = jnp.array([1.0, 0.2]), jnp.array([0.0, 0.6])
  target = fm.meanflow_target(v, du, t, r, max_interval=0.9, warmup=0.5)
  np.testing.assert_allclose(target[0], v[0] - 0.45 * du[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(target[1], v[1])


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_the_adaptive_weight_scales_the_gradient_only(p):
  u, target = arrays(2)
  squares = jnp.sum(jnp.square(u - target), axis=(1, 2, 3))
  np.testing.assert_allclose(
    fm.meanflow(u, target, p=p, c=0.1), squares / (squares + 0.1) ** p, rtol=1e-5
  )
  on_u, on_target = jax.grad(lambda u, y: fm.meanflow(u, y, p=p, c=0.1).sum(), argnums=(0, 1))(
    u, target
  )
  want = 2 * (u - target) / ((squares + 0.1) ** p)[:, None, None, None]
  np.testing.assert_allclose(on_u, want, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(on_target, 0)


def test_at_the_optimum_and_far_from_it_gradients_are_finite():
  (u,) = arrays(1)
  for loss in (fm.meanflow, fm.meanflow_normalised):
    for target in (u, u + 1e10):
      grad = jax.grad(lambda u, y=target, loss=loss: loss(u, y).sum())(u)
      assert jnp.isfinite(grad).all()


def test_the_gradient_of_the_normalised_form():
  u, target = arrays(2)
  gap = target - u
  for scaled in (False, True):
    g = gap / u[0].size ** 0.5 if scaled else gap
    norm = jnp.sqrt(jnp.sum(g**2, axis=(1, 2, 3), keepdims=True))
    got = jax.grad(lambda u, scaled=scaled: fm.meanflow_normalised(u, target, scaled=scaled).sum())(
      u
    )
    np.testing.assert_allclose(got, -2 * g / (norm + 0.1), rtol=1e-4, atol=1e-6)


def test_guided_velocities():
  v, null, label = arrays(3)
  np.testing.assert_allclose(fm.meanflow_guided(v, null, omega=1.0), v, rtol=1e-6)
  np.testing.assert_allclose(
    fm.meanflow_guided(v, null, omega=3.0), null + 3 * (v - null), rtol=1e-4, atol=1e-5
  )
  omega, kappa = jnp.array([1.0, 2.0]), jnp.array([0.0, 0.5])
  got = fm.meanflow_guided(v, null, label, omega=omega, kappa=kappa)
  np.testing.assert_allclose(got[0], v[0], rtol=1e-6)
  np.testing.assert_allclose(
    got[1], 2 * v[1] - 1.5 * null[1] + 0.5 * label[1], rtol=1e-4, atol=1e-5
  )


def test_the_velocity_of_the_improved_form_is_a_fixed_point():
  """v_c = v_u + w (v - v_u), the guided velocity, reproduces itself as the target."""
  v, null = arrays(2)
  w = jnp.array([1.0, 4.0])
  guided = null + w[:, None, None, None] * (v - null)
  got = fm.improved_meanflow_guided(v, null, guided, w)
  np.testing.assert_allclose(got, guided, rtol=1e-4, atol=1e-5)


def test_the_improved_form_trains_both_heads_and_not_the_derivative():
  u, du, head, v = arrays(4)
  t, r = jnp.array([0.9, 0.5]), jnp.array([0.1, 0.5])

  def loss(u, du, head, v):
    return fm.improved_meanflow(u, du, head, v, t, r, p=0.0).sum()

  on_u, on_du, on_head, on_v = jax.grad(loss, argnums=(0, 1, 2, 3))(u, du, head, v)
  compound = u + (t - r)[:, None, None, None] * du
  np.testing.assert_allclose(on_u, 2 * (compound - v), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(on_head, 2 * (head - v), rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(on_du, 0)
  np.testing.assert_array_equal(on_v, 0)


def test_the_improved_form_has_meanflows_gradient_at_the_same_velocity():
  u, du, v = arrays(3)
  t, r = jnp.array([0.9, 0.5]), jnp.array([0.1, 0.4])
  target = fm.meanflow_target(v, du, t, r)
  one = jax.grad(lambda u: fm.meanflow(u, target, c=0.01).sum())(u)
  other = jax.grad(lambda u: fm.improved_meanflow(u, du, v, v, t, r).sum())(u)
  np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_shortcut_targets_are_clipped_and_stopped():
  first, second = 10 * jnp.ones((1, 2)), jnp.array([[-30.0, 0.0]])
  np.testing.assert_array_equal(fm.shortcut_target(first, second), [[-4, 4]])
  np.testing.assert_array_equal(fm.shortcut_target(first, second, clip=None), [[-10, 5]])
  np.testing.assert_array_equal(
    fm.shortcut_midpoint(second, first, jnp.array([0.5])), [[-4.0, 4.0]]
  )
  grad = jax.grad(lambda v: fm.shortcut_target(v, second).sum())(first)
  np.testing.assert_array_equal(grad, 0)


def test_rectified_flow_takes_any_distance():
  v, start, end = arrays(3)
  np.testing.assert_array_equal(fm.rectified_flow(v, start, end), mean_squared(v, end - start))
  got = fm.rectified_flow(v, start, end, distance=fm.scaled_pseudo_huber)
  c, square = 0.00054 * 12, mean_squared(v, end - start) * 12
  np.testing.assert_allclose(got, (jnp.sqrt(square + c**2) - c) / 12, rtol=1e-5)


def test_interpolation_and_jumps_meet():
  start, end = arrays(2)
  t, r = jnp.array([0.8, 1.0]), jnp.array([0.3, 0.0])
  x = fm.interpolate(start, end, t)
  np.testing.assert_allclose(
    fm.jump(x, end - start, t, r), fm.interpolate(start, end, r), atol=1e-5
  )
  np.testing.assert_array_equal(x[1], end[1])
