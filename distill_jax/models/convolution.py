"""Convolutions whose gradients of any order are convolutions with small kernels.

The gradient of a convolution in its kernel slides one image over another. XLA's own derivative of
that, which methods that differentiate through training take, pads a kernel's gradient of 3 x 3 to
the size of the image and slides an image over it: on 28 x 28 pixels 87 times the products that are
needed. `convolve` and `kernel_gradient` are bilinear, and each is the other's derivative:

  d <c, convolve(x, k)>         = convolve(c, turned k) dx + kernel_gradient(x, c) dk
  d <c, kernel_gradient(x, y)>  = convolve(y, turned c) dx + convolve(x, c) dy

All of them are plain convolutions, [B, H, W, I] with [h, w, I, O]: XLA moves other axes into that
order on a CPU outside of loops and branches only, and in them falls back to a slow one
(benchmarks/dataset_step.py sees it).

Both are primitives, since neither a rule for reverse mode alone nor one for forward mode can say
which program the transpose of a tangent is.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  """x [B, H, W, I] with a kernel [h, w, I, O] of odd sides, half of which is padded on all sides,
  to [B, ceil(H / stride), ceil(W / stride), O]."""
  return _convolve.bind(x, kernel, stride=stride)


def kernel_gradient(
  x: jax.Array, y: jax.Array, sides: tuple[int, int], stride: int = 1
) -> jax.Array:
  """sum_{b, p} x[b, stride p + i - half] y[b, p] for each i of a kernel of `sides`: [h, w, I, O] of
  x [B, H, W, I] and y [B, H', W', O]."""
  return _kernel_gradient.bind(x, y, sides=sides, stride=stride)


def _run_convolve(x, kernel, *, stride):
  return _plain(x, kernel, _halves(kernel.shape[:2]), stride=stride)


def _run_kernel_gradient(x, y, *, sides, stride):
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


def _halves(sides: Sequence[int]) -> list[tuple[int, int]]:
  return [(side // 2, side // 2) for side in sides]


def _image_gradient(c, kernel, stride, size):
  """d <c, convolve(x, kernel, stride)> / dx, of x with `size` pixels."""
  turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
  if stride == 1:
    return convolve(c, turned)
  rest = [(side - 1) % stride for side in size]
  halves = _halves(kernel.shape[:2])
  padding = [(low, high + more) for (low, high), more in zip(halves, rest, strict=True)]
  return _plain(c, turned, padding, left=stride)


def _many_images(arguments, axes, *, stride):
  """vmap of `convolve`: images of one kernel are one batch."""
  (x, kernel), (of_x, of_kernel) = arguments, axes
  if of_kernel is not None:
    return jax.vmap(lambda x, k: _run_convolve(x, k, stride=stride), axes)(x, kernel), 0
  x = jnp.moveaxis(x, of_x, 0)
  y = convolve(x.reshape(-1, *x.shape[2:]), kernel, stride)
  return y.reshape(*x.shape[:2], *y.shape[1:]), 0


def _many_gradients(arguments, axes, **given):
  return jax.vmap(lambda x, y: _run_kernel_gradient(x, y, **given), axes)(*arguments), 0


def _primitive(name: str, run: Callable, batch: Callable) -> Primitive:
  made = Primitive(name)
  made.def_impl(run)

  def shape(x, y, **given):
    out = jax.eval_shape(lambda x, y: run(x, y, **given), x, y)
    return x.update(shape=out.shape, dtype=out.dtype, weak_type=False)

  made.def_abstract_eval(shape)
  mlir.register_lowering(made, mlir.lower_fun(run, multiple_results=False))
  batching.primitive_batchers[made] = batch
  return made


_convolve = _primitive("convolve", _run_convolve, _many_images)
_kernel_gradient = _primitive("kernel_gradient", _run_kernel_gradient, _many_gradients)
ad.defbilinear(
  _convolve,
  lambda c, x, kernel, stride: _image_gradient(c, kernel, stride, x.aval.shape[1:3]),
  lambda c, x, kernel, stride: kernel_gradient(x, c, kernel.aval.shape[:2], stride),
)
ad.defbilinear(
  _kernel_gradient,
  lambda c, x, y, sides, stride: _image_gradient(y, c, stride, x.aval.shape[1:3]),
  lambda c, x, y, sides, stride: convolve(x, c, stride),
)
