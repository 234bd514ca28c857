"""The convolution and its gradients of three orders against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models.convolution import convolve, kernel_gradient


def xla(x, kernel, stride=1):
  padding = [(side // 2, side // 2) for side in kernel.shape[:2]]
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def draw(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def close(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), a, b)


@pytest.mark.parametrize("sides", [(1, 1), (3, 3), (5, 3)])
@pytest.mark.parametrize("batch, stride", [(1, 1), (4, 1), (2, 2), (1, 3)])
def test_values_and_gradients_of_three_orders_are_those_of_xla(sides, batch, stride):
  x, kernel = draw(0, batch, 6, 5, 2), draw(1, *sides, 2, 3) / 3
  probe = (draw(2, *x.shape), draw(3, *kernel.shape))

  def orders(convolve):
    def value(x, kernel):
      return jnp.sum(jnp.tanh(convolve(x, kernel, stride)) ** 2)

    def slope(f):  # of f along the probe, a scalar again
      return lambda *at: sum(map(jnp.vdot, jax.grad(f, argnums=(0, 1))(*at), probe))

    functions = [value, slope(value), slope(slope(value))]
    return [jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(x, kernel) for f in functions]

  close(convolve(x, kernel, stride), xla(x, kernel, stride))
  close(orders(convolve), orders(xla))


def test_a_kernel_gradient_is_a_sum_over_places():
  x, y = np.asarray(draw(0, 2, 4, 5, 2)), np.asarray(draw(1, 2, 4, 5, 3))
  padded = np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
  want = [[np.einsum("bhwi,bhwo->io", padded[:, i : i + 4], y)] for i in range(3)]
  close(kernel_gradient(x, y, (3, 1)), np.array(want))


@pytest.mark.parametrize("stride", [1, 2])
def test_tangents_and_tangents_of_gradients(stride):
  x, kernel = draw(0, 2, 6, 5, 2), draw(1, 3, 3, 2, 3) / 3
  tangents = draw(2, *x.shape), draw(3, *kernel.shape)

  def both(convolve):
    f = lambda x, k: jnp.sum(jnp.tanh(convolve(x, k, stride)) ** 2)  # noqa: E731
    slope = jax.grad(f, argnums=(0, 1))
    tangent = lambda x, k: jax.jvp(f, (x, k), tangents)[1]  # noqa: E731
    forward = jax.jvp(lambda x, k: convolve(x, k, stride), (x, kernel), tangents)
    curvature = jax.jvp(slope, (x, kernel), tangents)[1]
    return forward, curvature, jax.grad(tangent, argnums=(0, 1))(x, kernel)

  close(both(convolve), both(xla))
  _, curvature, reversed_ = both(convolve)
  close(curvature, reversed_)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (1, 4)])
def test_gradients_of_a_vmap_and_vmaps_of_a_gradient(axes):
  x, kernel = draw(0, 2, 6, 5, 2), draw(1, 3, 3, 2, 3)
  x = x if axes[0] is None else jnp.stack([x, 2 * x, x - 1], axes[0])
  kernel = kernel if axes[1] is None else jnp.stack([kernel, -kernel, kernel + 1], axes[1])

  def both(convolve):
    f = lambda x, k: jnp.sum(jnp.tanh(convolve(x, k) / 9) ** 2)  # noqa: E731
    many = lambda x, k: jnp.sum(jax.vmap(f, axes)(x, k))  # noqa: E731
    each = jax.vmap(jax.grad(f, argnums=(0, 1)), axes)(x, kernel)
    return jax.jit(jax.grad(many, argnums=(0, 1)))(x, kernel), each

  close(both(convolve), both(xla))


def test_bfloat16_stays():
  x, kernel = draw(0, 2, 4, 4, 2).astype(jnp.bfloat16), draw(1, 3, 3, 2, 3).astype(jnp.bfloat16)
  out, pull = jax.vjp(convolve, x, kernel)
  assert out.dtype == jnp.bfloat16 and {g.dtype for g in pull(out)} == {jnp.dtype(jnp.bfloat16)}


def test_many_kernels_at_once():
  x, kernels = draw(0, 3, 4, 4, 2), draw(1, 5, 3, 3, 2, 2)
  slope = jax.grad(lambda k: jnp.sum(convolve(x, k) ** 2))
  close(jax.vmap(slope)(kernels), jnp.stack([slope(k) for k in kernels]))
