"""Convolutions whose gradients of any order are convolutions with small kernels.

The gradient of a convolution in its kernel slides one image over another. XLA's own derivative of
that, which methods that differentiate through training take, pads a kernel's gradient of 3 x 3 to
the size of the image and slides an image over it: on 28 x 28 pixels 87 times the products that are
needed. `convolve` and `kernel_gradient` are bilinear, and each is the other's derivative:

  d <c, convolve(x, k)>         = convolve(c, turned k) dx + kernel_gradient(x, c) dk
  d <c, kernel_gradient(x, y)>  = convolve(y, turned c) dx + convolve(x, c) dy

All of them are plain convolutions, [B, H, W, I] with [h, w, I, O]: XLA moves other axes into that
order on a CPU outside of loops only, and in a loop falls back to a slow one
(benchmarks/dataset_step.py sees it).

Reverse mode only: `jax.jvp` of these is an error, so networks that need a tangent convolve by
models/unet.py.
"""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  """x [B, H, W, I] with a kernel [h, w, I, O] of odd sides, half of which is padded on all sides,
  to [B, ceil(H / stride), ceil(W / stride), O]."""
  return _plain(x, kernel, _halves(kernel.shape[:2]), stride=stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def kernel_gradient(
  x: jax.Array, y: jax.Array, sides: tuple[int, int], stride: int = 1
) -> jax.Array:
  """sum_{b, p} x[b, stride p + i - half] y[b, p] for each i of a kernel of `sides`: [h, w, I, O] of
  x [B, H, W, I] and y [B, H', W', O]."""
  x, y = jnp.transpose(x, (3, 1, 2, 0)), jnp.transpose(y, (1, 2, 0, 3))
  kernel = _plain(x, y, _halves(sides), right=stride)[:, : sides[0], : sides[1]]
  return jnp.transpose(kernel, (1, 2, 0, 3))


def _plain(x, kernel, padding, stride=1, left=1, right=1):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    padding,
    lhs_dilation=(left, left),
    rhs_dilation=(right, right),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _halves(sides):
  return [(side // 2, side // 2) for side in sides]


def _turned(kernel):
  return jnp.swapaxes(kernel[::-1, ::-1], 2, 3)


def _image_gradient(c, kernel, stride, size):
  """d <c, convolve(x, kernel, stride)> / dx, of x with `size` pixels."""
  if stride == 1:
    return convolve(c, _turned(kernel))
  rest = [(side - 1) % stride for side in size]
  halves = _halves(kernel.shape[:2])
  padding = [(low, high + more) for (low, high), more in zip(halves, rest, strict=True)]
  return _plain(c, _turned(kernel), padding, left=stride)


def _convolve_backward(stride, arguments, c):
  x, kernel = arguments
  of_kernel = kernel_gradient(x, c, kernel.shape[:2], stride)
  return _image_gradient(c, kernel, stride, x.shape[1:3]), of_kernel


def _kernel_gradient_backward(sides, stride, arguments, c):
  x, y = arguments
  return _image_gradient(y, c, stride, x.shape[1:3]), convolve(x, c, stride)


convolve.defvjp(
  lambda x, kernel, stride: (convolve(x, kernel, stride), (x, kernel)), _convolve_backward
)
kernel_gradient.defvjp(
  lambda x, y, sides, stride: (kernel_gradient(x, y, sides, stride), (x, y)),
  _kernel_gradient_backward,
)
