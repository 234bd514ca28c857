"""The ConvNet against its published size and a NumPy forward pass; what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models import convnet


def config(**changes):
  given = convnet.default_config()
  given.update(changes)
  return given


def test_convnet_3_has_320010_parameters_for_cifar10():
  shapes = jax.eval_shape(lambda key: convnet.init(config(), (32, 32, 3), key), jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == 320_010


def by_hand(params, x, groups):
  """[B, H, W, C] -> logits, features, one place at a time, in float64."""
  for block in params["blocks"]:
    kernel, (b, h, w, _) = block["conv"]["kernel"], x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = sum(padded[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3))
    y = y + block["conv"]["bias"]
    if "norm" in block:
      g = y.reshape(b, h * w, groups, -1)
      g = (g - g.mean((1, 3), keepdims=True)) / np.sqrt(g.var((1, 3), keepdims=True) + 1e-5)
      y = g.reshape(y.shape) * block["norm"]["scale"] + block["norm"]["bias"]
    y = np.maximum(y, 0)[:, : h // 2 * 2, : w // 2 * 2]
    x = (y[:, ::2, ::2] + y[:, 1::2, ::2] + y[:, ::2, 1::2] + y[:, 1::2, 1::2]) / 4
  features = x.reshape(len(x), -1)
  return features @ params["head"]["kernel"] + params["head"]["bias"], features


@pytest.mark.parametrize("norm, groups", [("instance", 8), ("group", 4), ("none", 0)])
def test_forward_is_the_formula(norm, groups):
  given, rng = config(width=8, depth=2, norm=norm, num_classes=3), np.random.default_rng(0)
  params = convnet.init(given, (7, 6, 2), jax.random.key(0))  # an odd row is dropped
  params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f4"), params)
  x = rng.normal(size=(3, 7, 6, 2))
  logits, features = convnet.apply(given, params, jnp.asarray(x, jnp.float32))
  assert logits.shape == (3, 3) and features.shape == (3, 8)
  for got, want in zip((logits, features), by_hand(params, x, groups), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_weights_are_uniform_within_the_root_of_the_fan_in():
  params = convnet.init(config(depth=1), (8, 8, 3), jax.random.key(0))
  kernel, bound = params["blocks"][0]["conv"]["kernel"], 27**-0.5
  assert 0.98 * bound < float(jnp.max(jnp.abs(kernel))) <= bound
  assert abs(float(jnp.std(kernel)) - bound / 3**0.5) < 0.02 * bound


@pytest.mark.parametrize(
  "shape, changes, says",
  [
    ((8, 7, 1), dict(), "8 x 7 cannot be halved 3 times"),
    ((8, 8, 1), dict(norm="batch"), "no norm 'batch'"),
  ],
)
def test_refusals(shape, changes, says):
  with pytest.raises(ValueError, match=says):
    convnet.init(config(**changes), shape, jax.random.key(0))
