"""The gradient of a loss at the optimum of another one, with respect to what shapes the optimum.

theta*(S) minimises inner(S, theta) and outer(S, theta*) is the loss. Then

  d outer / d S = direct + implicit,    implicit = -d/dS <v, d inner / d theta>,
  v = H^-1 d outer / d theta,

with H the Hessian of inner in theta. Loo, Hasani, Lechner and Rus, Dataset Distillation with
Convexified Implicit Gradients (RCIG, arXiv:2302.06755).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def inner_product(a: Tree, b: Tree) -> jax.Array:
  """The sum over leaves of <a, b>, a scalar."""
  return jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, a, b))


def inverse_hessian_product(
  inner: Callable[[Tree], jax.Array],
  theta: Tree,
  gradient: Tree,
  *,
  steps: int = 20,
  learning_rate: float | jax.Array,
) -> tuple[Tree, jax.Array]:
  """v with H v = gradient, by steps of Adam on <v, H v> / 2 - <v, gradient> from 0.

  Adam as the authors of RCIG have it (beta 0.9 and 0.999, epsilon 1e-8), not conjugate gradients:
  few steps are taken, and v is small where it has not converged.

  Args:
    inner: theta -> scalar; H is its Hessian at `theta`.
    gradient: shaped like theta.
    learning_rate: the authors raise it by 1.2 until the residuals no longer fall.

  Returns:
    v, and the residuals <v, H v> - 2 <v, gradient> before each step, [steps].
  """

  def step(carry, count):
    v, first, second = carry
    product = jax.jvp(jax.grad(inner), (theta,), (v,))[1]
    residual = inner_product(v, product) - 2 * inner_product(v, gradient)
    descent = jax.tree.map(jnp.subtract, product, gradient)
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, descent)
    second = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g**2, second, descent)

    def update(v, m, s):
      scale = jnp.sqrt(s / (1 - 0.999**count)) + 1e-8
      return v - learning_rate * m / (1 - 0.9**count) / scale

    return (jax.tree.map(update, v, first, second), first, second), residual

  zeros = jax.tree.map(jnp.zeros_like, theta)
  dtype = jnp.result_type(*jax.tree.leaves(theta))
  counts = jnp.arange(1, steps + 1, dtype=dtype)
  (v, _, _), residuals = jax.lax.scan(step, (zeros, zeros, zeros), counts)
  return v, residuals


def implicit_gradient(
  inner: Callable[[Tree, Tree], jax.Array], data: Tree, theta: Tree, v: Tree
) -> Tree:
  """-d/d data <v, d inner(data, theta) / d theta>, v constant: shaped like `data`."""

  def slope(data):
    return inner_product(jax.lax.stop_gradient(v), jax.grad(inner, argnums=1)(data, theta))

  return jax.tree.map(jnp.negative, jax.grad(slope)(data))


def limit_norms(gradient: Tree, reference: Tree) -> Tree:
  """Each leaf shortened to the norm of its leaf of `reference` where it is longer.

  RCIG's code limits the implicit gradient by the direct one, which is steadier on large images.
  """

  def limited(g, r):
    norm, most = jnp.sqrt(jnp.sum(jnp.square(g))), jnp.sqrt(jnp.sum(jnp.square(r)))
    return g * jnp.where(norm > most, most / jnp.where(norm > 0, norm, 1.0), 1.0)

  return jax.tree.map(limited, gradient, reference)
