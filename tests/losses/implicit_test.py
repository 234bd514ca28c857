"""Implicit gradients against the closed form of a quadratic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import implicit

A = jnp.array([[2.0, 0.5], [0.5, 1.0]])
B = jnp.array([[1.0, -1.0, 0.5], [0.3, 2.0, 0.0]])
G = {"a": jnp.array([1.0]), "b": jnp.array([-2.0])}


def flat(theta):
  return jnp.concatenate([theta["a"], theta["b"]])


def inner(data, theta):
  """Least at theta = A^-1 B data."""
  theta = flat(theta)
  return theta @ A @ theta / 2 - theta @ B @ data["x"] + jnp.sum(data["unused"]) * 3


DATA = {"x": jnp.array([1.0, 2.0, 3.0]), "unused": jnp.ones(2)}


def test_adam_finds_the_inverse_hessian_product():
  v, residuals = implicit.inverse_hessian_product(
    lambda theta: inner(DATA, theta), G, G, steps=600, learning_rate=0.05
  )
  want = jnp.linalg.solve(A, flat(G))
  np.testing.assert_allclose(flat(v), want, rtol=1e-3)
  assert residuals.shape == (600,) and residuals[0] == 0
  np.testing.assert_allclose(residuals[-1], -flat(G) @ want, rtol=1e-3)


def test_the_first_step_of_adam_has_the_size_of_its_rate():
  v, _ = implicit.inverse_hessian_product(
    lambda theta: inner(DATA, theta), G, G, steps=1, learning_rate=0.05
  )
  np.testing.assert_allclose(flat(v), 0.05 * jnp.sign(flat(G)), rtol=1e-5)


def test_implicit_gradient_is_that_of_the_optimum():
  v = jnp.linalg.solve(A, flat(G))
  v = {"a": v[:1], "b": v[1:]}
  got = implicit.implicit_gradient(inner, DATA, G, v)
  want = jax.grad(lambda x: flat(G) @ jnp.linalg.solve(A, B @ x))(DATA["x"])
  np.testing.assert_allclose(got["x"], want, rtol=1e-5)
  np.testing.assert_array_equal(got["unused"], 0)


@pytest.mark.parametrize(("length", "most", "want"), [(5.0, 1.0, 1.0), (0.5, 1.0, 0.5), (0, 1, 0)])
def test_limit_norms(length, most, want):
  gradient, reference = {"x": length * jnp.array([0.6, 0.8])}, {"x": jnp.array([most, 0.0])}
  got = implicit.limit_norms(gradient, reference)["x"]
  np.testing.assert_allclose(got, want * np.array([0.6, 0.8]), rtol=1e-6)


def test_limit_norms_by_nothing_is_nothing():
  got = implicit.limit_norms({"x": jnp.ones(2)}, {"x": jnp.zeros(2)})["x"]
  np.testing.assert_array_equal(got, 0)
