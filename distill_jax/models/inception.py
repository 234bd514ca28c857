"""The Inception-v3 network that FID is measured with: features of images, from converted weights.

It is the TensorFlow graph of 2015-12-05 as the package pytorch-fid ported it: average pools leave
out their padding, and the last block has a max pool where the paper of Inception-v3 has an average.
The weights are no part of this project; docs/diffusion.md says how to make the file from
pytorch-fid's pt_inception-2015-12-05-6726825d.pth. The classifier of 1008 ways in it is not read.

Szegedy et al., Rethinking the Inception Architecture for Computer Vision (arXiv:1512.00567); Heusel
et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium
(arXiv:1706.08500), for its use. Names and shapes are those of pytorch-fid.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.config import ConfigError

Params = dict[str, dict[str, Any]]  # name of a unit -> kernel [h, w, in, out] and bias [out]
Unit = Callable[..., jax.Array]  # (name, x, width, size, stride, padded) -> x
WIDTH, SIZE = 2048, 299  # of the features; of the images that the network sees
EPSILON = 1e-3  # of the batch norms
NORM = ("weight", "bias", "running_mean", "running_var")
REMEDY = "convert pytorch-fid's pt_inception-2015-12-05-6726825d.pth again (docs/diffusion.md)"


def features(params: Params, images: jax.Array) -> jax.Array:
  """The pooled features that FID is measured with.

  Images are resized to 299 x 299, bilinearly between pixel centres and without antialiasing, as
  pytorch-fid does by default.

  Args:
    params: of `load`.
    images: [N, H, W, C] in [-1, 1], any size; one channel is repeated to three.

  Returns:
    float32 [N, 2048].

  Raises:
    ValueError: images have neither one channel nor three.
  """
  if images.shape[-1] not in (1, 3):
    raise ValueError(f"images of {images.shape[-1]} channels: Inception takes 1 or 3")

  def unit(name, x, width, size=(1, 1), stride=1, padded=True):
    half = [(side // 2, side // 2) for side in size] if padded else "VALID"
    x = jax.lax.conv_general_dilated(
      x,
      params[name]["kernel"],
      (stride, stride),
      half,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      precision=jax.lax.Precision.HIGHEST,
    )
    return jax.nn.relu(x + params[name]["bias"])

  x = jnp.broadcast_to(images.astype(jnp.float32), (*images.shape[:-1], 3))
  return _network(unit, resize(x))


def resize(images: jax.Array) -> jax.Array:
  """Images [N, H, W, C] at 299 x 299: torch's `interpolate(mode="bilinear", align_corners=False)`,
  which does not antialias."""
  shape = (len(images), SIZE, SIZE, images.shape[-1])
  return jax.image.resize(images, shape, "linear", antialias=False)


def load(path: str) -> Params:
  """The weights of a safetensors file with pytorch-fid's names, batch norms folded into them.

  Raises:
    ConfigError: there is no such file, it is damaged, or a tensor is missing or has another shape.
  """
  from safetensors import SafetensorError
  from safetensors.numpy import load_file

  file = pathlib.Path(path).expanduser()
  if not file.is_file():
    raise ConfigError(f"inception: no file {path!r}: {REMEDY}.")
  try:
    tensors = load_file(file)
  except SafetensorError as error:
    raise ConfigError(f"{file} is not a whole safetensors file ({error}): {REMEDY}.") from None
  for name, shape in shapes().items():
    if name not in tensors:
      raise ConfigError(f"{file}: no tensor {name!r}: {REMEDY}.")
    if tensors[name].shape != shape:
      found = list(tensors[name].shape)
      raise ConfigError(f"{file}: {name!r} has shape {found}, not {list(shape)}: {REMEDY}.")
  return {name: _folded(tensors, name) for name in _kernels()}


def shapes() -> dict[str, tuple[int, ...]]:
  """Name -> shape of every tensor that `load` reads, as pytorch-fid stores it."""
  found: dict[str, tuple[int, ...]] = {}
  for name, (height, width, fan_in, fan_out) in _kernels().items():
    found[f"{name}.conv.weight"] = (fan_out, fan_in, height, width)
    found |= {f"{name}.bn.{part}": (fan_out,) for part in NORM}
  return found


def _folded(tensors, name):
  """y = (conv(x) - mean) scale / sqrt(var + eps) + bias, as one convolution with a bias."""
  scale, bias, mean, variance = (np.float64(tensors[f"{name}.bn.{part}"]) for part in NORM)
  factor = scale / np.sqrt(variance + EPSILON)
  kernel = tensors[f"{name}.conv.weight"].transpose(2, 3, 1, 0) * factor
  return dict(kernel=np.float32(kernel), bias=np.float32(bias - mean * factor))


@functools.cache
def _kernels():
  """Name -> [h, w, in, out] of every unit, from a walk through the network without numbers."""
  found = {}

  def unit(name, x, width, size=(1, 1), stride=1, padded=True):
    found[name] = (*size, x.shape[-1], width)
    # padding leaves odd sides as they are, and no padding loses what a pool would
    if not padded:
      x = _max_pool(x, size[0], stride)
    return jnp.zeros((*x.shape[:-1], width))

  jax.eval_shape(lambda x: _network(unit, x), jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), "float32"))
  return found


def _network(unit: Unit, x: jax.Array) -> jax.Array:
  """[N, 299, 299, 3] -> [N, 2048]; `unit` is a convolution, its norm and ReLU."""
  x = unit("Conv2d_1a_3x3", x, 32, (3, 3), 2, False)
  x = unit("Conv2d_2a_3x3", x, 32, (3, 3), 1, False)
  x = unit("Conv2d_2b_3x3", x, 64, (3, 3))
  x = unit("Conv2d_3b_1x1", _max_pool(x), 80)
  x = unit("Conv2d_4a_3x3", x, 192, (3, 3), 1, False)
  x = _max_pool(x)
  for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
    x = _block_a(functools.partial(_within, unit, name), x, pooled)
  x = _block_b(functools.partial(_within, unit, "Mixed_6a"), x)
  for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
    x = _block_c(functools.partial(_within, unit, name), x, width)
  x = _block_d(functools.partial(_within, unit, "Mixed_7a"), x)
  x = _block_e(functools.partial(_within, unit, "Mixed_7b"), x, _mean_pool)
  x = _block_e(functools.partial(_within, unit, "Mixed_7c"), x, _max_pool_padded)
  return jnp.mean(x, axis=(1, 2))


def _within(unit, block, name, *args):
  return unit(f"{block}.{name}", *args)


def _block_a(unit, x, pooled):
  """35 x 35."""
  fives = unit("branch5x5_2", unit("branch5x5_1", x, 48), 64, (5, 5))
  threes = unit("branch3x3dbl_2", unit("branch3x3dbl_1", x, 64), 96, (3, 3))
  threes = unit("branch3x3dbl_3", threes, 96, (3, 3))
  means = unit("branch_pool", _mean_pool(x), pooled)
  return _join(unit("branch1x1", x, 64), fives, threes, means)


def _block_b(unit, x):
  """35 x 35 to 17 x 17."""
  threes = unit("branch3x3dbl_2", unit("branch3x3dbl_1", x, 64), 96, (3, 3))
  threes = unit("branch3x3dbl_3", threes, 96, (3, 3), 2, False)
  return _join(unit("branch3x3", x, 384, (3, 3), 2, False), threes, _max_pool(x))


def _block_c(unit, x, width):
  """17 x 17, with 7 x 7 kernels as a row and a column."""
  row, column = (1, 7), (7, 1)
  sevens = unit("branch7x7_2", unit("branch7x7_1", x, width), width, row)
  sevens = unit("branch7x7_3", sevens, 192, column)
  twice = unit("branch7x7dbl_2", unit("branch7x7dbl_1", x, width), width, column)
  twice = unit("branch7x7dbl_3", twice, width, row)
  twice = unit("branch7x7dbl_4", twice, width, column)
  twice = unit("branch7x7dbl_5", twice, 192, row)
  means = unit("branch_pool", _mean_pool(x), 192)
  return _join(unit("branch1x1", x, 192), sevens, twice, means)


def _block_d(unit, x):
  """17 x 17 to 8 x 8."""
  threes = unit("branch3x3_2", unit("branch3x3_1", x, 192), 320, (3, 3), 2, False)
  sevens = unit("branch7x7x3_2", unit("branch7x7x3_1", x, 192), 192, (1, 7))
  sevens = unit("branch7x7x3_3", sevens, 192, (7, 1))
  sevens = unit("branch7x7x3_4", sevens, 192, (3, 3), 2, False)
  return _join(threes, sevens, _max_pool(x))


def _block_e(unit, x, pool):
  """8 x 8, with 3 x 3 kernels as a row and a column side by side."""

  def both(name, x):
    return _join(unit(f"{name}a", x, 384, (1, 3)), unit(f"{name}b", x, 384, (3, 1)))

  threes = both("branch3x3_2", unit("branch3x3_1", x, 384))
  twice = unit("branch3x3dbl_2", unit("branch3x3dbl_1", x, 448), 384, (3, 3))
  twice = both("branch3x3dbl_3", twice)
  return _join(unit("branch1x1", x, 320), threes, twice, unit("branch_pool", pool(x), 192))


def _join(*branches):
  return jnp.concatenate(branches, axis=-1)


def _max_pool(x, size=3, stride=2):
  window, strides = (1, size, size, 1), (1, stride, stride, 1)
  return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, "VALID")


def _max_pool_padded(x):
  return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")


def _mean_pool(x):
  """3 x 3 of stride 1; at the border, of the places that there are."""
  window, strides = (1, 3, 3, 1), (1, 1, 1, 1)
  total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, "SAME")
  places = jax.lax.reduce_window(
    jnp.ones((1, *x.shape[1:3], 1)), 0.0, jax.lax.add, window, strides, "SAME"
  )
  return total / places
