"""Adversarial losses: directions, extreme logits, and penalties of known discriminators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import adversarial as adv

ONE_SIDED = [adv.logistic_real, adv.logistic_fake, adv.hinge_real, adv.hinge_fake]


@pytest.mark.parametrize("loss", [*ONE_SIDED, adv.hinge_generator])
@pytest.mark.parametrize("logit", [-1e4, -50.0, 0.0, 50.0, 1e4])
def test_extreme_logits_are_finite(loss, logit):
  value, grad = jax.value_and_grad(loss)(jnp.float32(logit))
  assert jnp.isfinite(value) and abs(grad) <= 1


@pytest.mark.parametrize("loss", [adv.logistic_real, adv.hinge_real, adv.hinge_generator])
def test_descent_calls_it_real(loss):
  assert jax.grad(loss)(jnp.float32(0.3)) < 0


@pytest.mark.parametrize("loss", [adv.logistic_fake, adv.hinge_fake])
def test_descent_calls_it_fake(loss):
  assert jax.grad(loss)(jnp.float32(0.3)) > 0


def test_known_values():
  np.testing.assert_allclose(adv.logistic_real(jnp.zeros(2)), np.log(2), rtol=1e-6)
  np.testing.assert_allclose(adv.hinge_real(jnp.array([-1.0, 1.0, 3.0])), [2, 0, 0])
  np.testing.assert_allclose(adv.hinge_fake(jnp.array([-3.0, -1.0, 1.0])), [0, 0, 2])


def test_relativistic_depends_on_the_difference():
  real, fake = jnp.array([1.0, -2.0]), jnp.array([0.5, 400.0])
  got = adv.relativistic(real, fake)
  np.testing.assert_allclose(got, adv.relativistic(real + 7, fake + 7), rtol=1e-5)
  np.testing.assert_allclose(got, adv.logistic_real(real - fake), rtol=1e-6)


def test_gradient_penalty_of_a_quadratic():
  """D = a |x|^2 / 2 + <b, x> has gradient a x + b; its penalty reaches the parameters."""
  x, b = jax.random.normal(jax.random.key(0), (3, 2, 2)), jnp.array([[1.0, 2.0], [3.0, 4.0]])

  def penalty(a, x):
    return adv.gradient_penalty(lambda x: jnp.sum(a * x**2 / 2 + b * x, axis=(1, 2)), x)

  want = jnp.sum((0.7 * x + b) ** 2, axis=(1, 2))
  np.testing.assert_allclose(penalty(0.7, x), want, rtol=1e-5)
  got = jax.grad(lambda a: penalty(a, x).sum())(0.7)
  np.testing.assert_allclose(got, jnp.sum(2 * x * (0.7 * x + b)), rtol=1e-5)
  np.testing.assert_allclose(penalty(0.7, x[:1]), want[:1], rtol=1e-5)


def test_gradient_penalty_sums_heads():
  x = jnp.ones((2, 3))
  got = adv.gradient_penalty(lambda x: jnp.stack([x.sum(-1), 2 * x.sum(-1)], axis=-1), x)
  np.testing.assert_allclose(got, 27)


def test_perturbation_penalty_approaches_the_gradient_penalty():
  """Its mean over noise is s^2 |grad D|^2 for a linear discriminator."""
  b, s = jnp.array([1.0, -2.0, 3.0]), 0.1
  z = jax.random.normal(jax.random.key(0), (20_000, 3))
  x = jnp.ones((1, 3))
  got = jnp.mean(adv.perturbation_penalty(x @ b, (x + s * z) @ b))
  want = s**2 * adv.gradient_penalty(lambda x: x @ b, x)[0]
  np.testing.assert_allclose(got, want, rtol=0.05)
