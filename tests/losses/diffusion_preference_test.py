"""Preference losses of diffusion models: known values, directions, saturation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import diffusion_preference as pref

ZERO = jnp.zeros(1)


@pytest.mark.parametrize(
  "loss", [pref.diffusion_dpo, pref.pso, partial(pref.pso, rejected_weight=0.5)]
)
def test_at_the_reference_it_is_log_2(loss):
  errors = jnp.array([3.0]), jnp.array([5.0])
  np.testing.assert_allclose(loss(*errors, *errors, beta=7.0), np.log(2), rtol=1e-6)


@pytest.mark.parametrize(
  "loss",
  [
    lambda c, r: pref.diffusion_dpo(c, r, ZERO, ZERO, beta=2.0),
    lambda c, r: pref.pso(c, r, ZERO, ZERO, beta=2.0, rejected_weight=0.5),
    lambda c, r: pref.pso_hinge(c, r, beta=2.0),
  ],
)
def test_descent_improves_the_chosen_image_and_spoils_the_other(loss):
  chosen, rejected = jax.grad(lambda c, r: loss(c, r).sum(), (0, 1))(ZERO, ZERO)
  assert chosen[0] > 0 > rejected[0]


def test_the_rejected_weight_scales_its_gradient():
  def loss(c, r, weight):
    return pref.pso(c, r, ZERO, ZERO, beta=2.0, rejected_weight=weight).sum()

  full = jax.grad(loss, 1)(ZERO, ZERO, 1.0)
  np.testing.assert_allclose(jax.grad(loss, 1)(ZERO, ZERO, 0.25), full / 4, rtol=1e-6)


@pytest.mark.parametrize("gap", [-1e6, 1e6])
def test_dpo_saturates(gap):
  value, grad = jax.value_and_grad(
    lambda c: pref.diffusion_dpo(c, ZERO, ZERO, ZERO, beta=2500.0).sum()
  )(jnp.array([gap]))
  assert jnp.isfinite(value) and jnp.isfinite(grad).all()
  np.testing.assert_allclose(grad, 2500.0 if gap > 0 else 0.0)


def test_no_gradient_reaches_the_reference():
  grads = jax.grad(lambda *r: pref.pso(ZERO, ZERO, *r, beta=2.0).sum(), (0, 1))(ZERO, ZERO)
  assert not any(g.any() for g in grads)
  signs = jnp.array([[1.0, -1.0]])
  grad = jax.grad(lambda r: pref.pso_online(jnp.zeros((1, 2)), r, signs, beta=5.0, clip=0.1).sum())(
    jnp.zeros((1, 2))
  )
  assert not grad.any()


def test_pso_online_inside_and_outside_of_the_clip():
  signs = jnp.array([[1.0, -1.0]])

  def loss(log_probs):
    return pref.pso_online(log_probs, jnp.zeros((1, 2)), signs, beta=5.0, clip=0.1).sum()

  inside = jax.grad(loss)(jnp.array([[0.01, -0.02]]))
  assert inside[0, 0] < 0 < inside[0, 1]
  value, outside = jax.value_and_grad(loss)(jnp.array([[1e4, -1e4]]))
  assert not outside.any()
  want = np.log1p(np.exp(-5 * (np.log(1.1) - np.log(0.9))))
  np.testing.assert_allclose(value, want, rtol=1e-5)


def test_euler_ancestral_step_is_a_normal_density():
  """A step of the sampler's mean and spread: the density integrates to one."""
  x, noise = jnp.full((1, 1), 0.3), jnp.full((1, 1), -0.8)
  sigma, following = jnp.array([2.0]), jnp.array([1.2])
  grid = jnp.linspace(-8, 8, 2001)[:, None]
  log_prob = jax.vmap(
    lambda y: pref.euler_ancestral_log_prob(noise, x, y[None], sigma, following)[0]
  )(grid)
  density, step = jnp.exp(log_prob), 16 / 2000
  np.testing.assert_allclose(jnp.sum(density) * step, 1, rtol=1e-5)
  mean = jnp.sum(density * grid[:, 0]) * step
  x0 = 0.3 - 2.0 * -0.8
  np.testing.assert_allclose(mean, x0 + (1.2**2 / 2.0) * -0.8, rtol=1e-4)  # at the level `down`
  variance = jnp.sum(density * (grid[:, 0] - mean) ** 2) * step
  np.testing.assert_allclose(variance + (1.2**2 / 2.0) ** 2, 1.2**2, rtol=1e-4)
