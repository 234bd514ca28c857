"""Distances, boundary conditions and steps of discrete consistency models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import consistency as c

DISTANCES = [
  c.mean_squared,
  c.mean_absolute,
  c.largest,
  c.euclidean,
  c.root_mean_square,
  partial(c.pseudo_huber, c=0.0),
  partial(c.pseudo_huber, c=0.1),
  partial(c.mean_pseudo_huber, c=0.1),
]
NAMES = [getattr(f, "__name__", str(getattr(f, "keywords", ""))) for f in DISTANCES]


def images(seed=0, batch=2):
  return jax.random.normal(jax.random.key(seed), (batch, 2, 2, 3))


@pytest.mark.parametrize("distance", DISTANCES, ids=NAMES)
@pytest.mark.parametrize("batch", [1, 3])
def test_distances_are_per_example_and_zero_at_equality(distance, batch):
  x, y = images(0, batch), images(1, batch)
  assert distance(x, y).shape == (batch,) and jnp.all(distance(x, y) > 0)
  alone = jnp.concatenate([distance(a[None], b[None]) for a, b in zip(x, y, strict=True)])
  np.testing.assert_allclose(distance(x, y), alone, rtol=1e-6)
  np.testing.assert_allclose(distance(x, x), 0, atol=1e-7)
  assert jnp.isfinite(jax.grad(lambda x: distance(x, images(0, batch)).sum())(x)).all()


def test_values_of_distances():
  x, y = jnp.array([[3.0, 0.0], [1.0, 1.0]]), jnp.array([[0.0, 4.0], [1.0, 1.0]])
  np.testing.assert_allclose(c.euclidean(x, y), [5, 0])
  np.testing.assert_allclose(c.mean_squared(x, y), [12.5, 0])
  np.testing.assert_allclose(c.mean_absolute(x, y), [3.5, 0])
  np.testing.assert_allclose(c.largest(x, y), [4, 0])
  np.testing.assert_allclose(c.root_mean_square(x, y), [12.5**0.5, 0], rtol=1e-6)
  np.testing.assert_allclose(c.pseudo_huber(x, y, c=12.0), [1, 0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(c.mean_pseudo_huber(x, y, c=0.0), [3.5, 0])


def test_pseudo_huber_is_square_near_zero_and_linear_far_away():
  with jax.enable_x64(True):
    x, zero = jnp.array([[1e-4], [1e4]]), jnp.zeros((2, 1))
    near, far = c.pseudo_huber(x, zero, c=1.0)
    np.testing.assert_allclose(near, 0.5e-8, rtol=1e-6)
    np.testing.assert_allclose(far, 1e4 - 1, rtol=1e-8)
  np.testing.assert_allclose(c.ict_c((7, 32, 32, 3)), 0.00054 * 3072**0.5)


def test_boundary_condition():
  sigma = jnp.array([0.002, 0.5, 80.0])
  c_skip, c_out, c_in = c.boundary_scalings(sigma)
  assert c_skip[0] == 1 and c_out[0] == 0
  np.testing.assert_allclose(c_in, 1 / np.sqrt(sigma**2 + 0.25), rtol=1e-6)
  skip, out, _ = c.boundary_scalings(jnp.zeros(1), sigma_min=0.0)
  assert skip[0] == 1 and out[0] == 0


@pytest.mark.parametrize("form", ["euler", "variance", "mixed"])
def test_a_jump_to_the_same_level_is_the_identity(form):
  t = jnp.array([0.002, 0.5, 80.0])
  on_x, on_g = c.ctm_scalings(t, t, form=form)
  np.testing.assert_allclose(on_x, 1, rtol=1e-6)
  np.testing.assert_allclose(on_g, 0, atol=1e-7)


def test_an_unknown_form_is_named():
  with pytest.raises(ValueError, match=r"'heun'.*variance"):
    c.ctm_scalings(jnp.ones(1), jnp.ones(1), form="heun")


def test_steps_with_the_data_stay_on_their_line():
  with jax.enable_x64(True):
    x0, eps = (images(s).astype(jnp.float64) for s in (0, 1))
    t, then = jnp.array([80.0, 0.3]), jnp.array([0.002, 0.2])
    x, want = (x0 + c.expand(s, x0) * eps for s in (t, then))
    euler = c.euler_step(x, x0, t, then)
    np.testing.assert_allclose(euler, want, atol=1e-13)
    np.testing.assert_allclose(c.heun_step(x, x0, euler, x0, t, then), want, atol=1e-12)


def test_only_the_online_side_is_trained():
  x, y = images(0), images(1)
  t, r = jnp.array([2.0, 3.0]), jnp.array([1.0, 0.0])
  for loss in (c.consistency, partial(c.ect, t=t, r=r), partial(c.ict, sigma=t, then=r)):
    on_x, on_y = jax.grad(lambda x, y, loss=loss: loss(x, y).sum(), argnums=(0, 1))(x, y)
    assert jnp.abs(on_x).max() > 0 and jnp.abs(on_y).max() == 0
  both = jax.grad(lambda x, y: c.consistency(x, y, stop_target=False).sum(), argnums=(0, 1))(x, y)
  np.testing.assert_allclose(both[0], -both[1])


def test_weights_and_intervals():
  x, y = images(0), images(1)
  w = jnp.array([0.0, 3.0])
  np.testing.assert_allclose(c.consistency(x, y, weight=w), w * c.mean_squared(x, y), rtol=1e-6)
  t, r = jnp.array([2.0, 3.0]), jnp.array([1.5, 0.0])
  np.testing.assert_allclose(c.ect(x, y, t, r), c.euclidean(x, y) / (t - r), rtol=1e-6)
  huber = c.pseudo_huber(x, y, c=c.ict_c(x.shape)) / (t - r)
  np.testing.assert_allclose(c.ict(x, y, t, r), huber, rtol=1e-6)


def test_where_r_is_zero_the_data_replaces_even_nan():
  x0, r = images(0), jnp.array([0.0, 1.0])
  denoised = images(1).at[0].set(jnp.nan)
  target = c.clean_at_zero(denoised, x0, r)
  np.testing.assert_array_equal(target[0], x0[0])
  np.testing.assert_array_equal(target[1], denoised[1])
