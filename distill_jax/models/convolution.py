"""Convolutions whose gradients of any order are convolutions with small kernels.

The gradient of a convolution in its kernel slides one image over another. XLA's own derivative of
that, which methods that differentiate through training take, pads a kernel's gradient of 3 x 3 to
the size of the image and slides an image over it: on 28 x 28 pixels 87 times the products that are
needed. `convolve` and `kernel_gradient` are bilinear, and each is the other's derivative:

  d <c, convolve(x, k)>         = convolve(c, turned k) dx + kernel_gradient(x, c) dk
  d <c, kernel_gradient(x, y)>  = convolve(y, turned c) dx + convolve(x, c) dy

`kernel_gradient` moves axes itself to those of a plain convolution: XLA does so on a CPU outside of
loops only, and a convolution over other axes falls back to a slow one in them
(benchmarks/dataset_step.py sees it).

Reverse mode only: `jax.jvp` of these is an error, so networks that need a tangent convolve by
models/unet.py.
"""

import functools

import jax
import jax.numpy as jnp


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """x [B, H, W, I] with a kernel [h, w, I, O] of odd sides, stride 1, to [B, H, W, O]."""
  dimensions = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def kernel_gradient(x: jax.Array, y: jax.Array, sides: tuple[int, int]) -> jax.Array:
  """sum_{b, p} x[b, p + i - half] y[b, p] for each i of a kernel of `sides`: [h, w, I, O] of
  x [B, H, W, I] and y [B, H, W, O]."""
  padding = [(side // 2, side // 2) for side in sides]
  x, y = jnp.transpose(x, (3, 1, 2, 0)), jnp.transpose(y, (1, 2, 0, 3))
  dimensions = ("NHWC", "HWIO", "NHWC")
  kernel = jax.lax.conv_general_dilated(x, y, (1, 1), padding, dimension_numbers=dimensions)
  return jnp.transpose(kernel, (1, 2, 0, 3))


def _turned(kernel):
  return jnp.swapaxes(kernel[::-1, ::-1], 2, 3)


def _convolve_backward(arguments, c):
  x, kernel = arguments
  return convolve(c, _turned(kernel)), kernel_gradient(x, c, kernel.shape[:2])


def _kernel_gradient_backward(sides, arguments, c):
  x, y = arguments
  return convolve(y, _turned(c)), convolve(x, c)


convolve.defvjp(lambda x, kernel: (convolve(x, kernel), (x, kernel)), _convolve_backward)
kernel_gradient.defvjp(
  lambda x, y, sides: (kernel_gradient(x, y, sides), (x, y)), _kernel_gradient_backward
)
