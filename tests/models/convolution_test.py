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


def test_many_kernels_at_once():
  x, kernels = draw(0, 3, 4, 4, 2), draw(1, 5, 3, 3, 2, 2)
  slope = jax.grad(lambda k: jnp.sum(convolve(x, k) ** 2))
  close(jax.vmap(slope)(kernels), jnp.stack([slope(k) for k in kernels]))
