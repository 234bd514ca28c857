"""The vision transformer and the perceptron against NumPy; what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models import perceptron, vit


def config(**changes):
  given = vit.default_config()
  given.update(changes)
  return given


def normalized(p, x):
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return x * p["scale"] + p["bias"]


def by_hand(params, x, patch, heads):
  """[B, H, W, C] -> logits, features, one patch and one head at a time."""
  b, height, across, _ = x.shape
  rows = [
    x[:, i : i + patch, j : j + patch].reshape(b, -1)
    for i in range(0, height, patch)
    for j in range(0, across, patch)
  ]
  affine = lambda p, x: x @ p["kernel"] + p["bias"]  # noqa: E731
  h = affine(params["inputs"], np.stack(rows, axis=1)) + params["positions"]
  for k in range(len(params["layers"]["up"]["bias"])):
    p = jax.tree.map(lambda x: x[k], params["layers"])
    query, key, value = np.split(affine(p["qkv"], normalized(p["norm_1"], h)), 3, axis=-1)
    mixed = np.zeros_like(h)
    size = h.shape[-1] // heads
    for i in range(heads):
      part = slice(i * size, (i + 1) * size)
      scores = query[..., part] @ key[..., part].swapaxes(1, 2) / size**0.5
      weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
      mixed[..., part] = weights @ value[..., part]
    h = h + affine(p["outputs"], mixed)
    up = affine(p["up"], normalized(p["norm_2"], h))
    h = h + affine(p["down"], np.asarray(jax.nn.gelu(up)))
  features = normalized(params["norm"], h).mean(axis=1)
  return affine(params["head"], features), features


def test_forward_is_the_formula():
  given, rng = config(width=8, heads=2, depth=2, patch=2, num_classes=3), np.random.default_rng(0)
  params = vit.init(given, (6, 4, 2), jax.random.key(0))
  params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f4"), params)
  x = rng.normal(size=(3, 6, 4, 2)).astype("f4")
  got = vit.apply(given, params, jnp.asarray(x))
  want = by_hand(jax.tree.map(np.asarray, params), x, 2, 2)
  assert got[0].shape == (3, 3) and got[1].shape == (3, 8)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_size():
  shapes = jax.eval_shape(lambda key: vit.init(config(), (28, 28, 1), key), jax.random.key(0))
  assert 190_000 < sum(x.size for x in jax.tree.leaves(shapes)) < 220_000


@pytest.mark.parametrize(
  "changes, says",
  [
    (dict(patch=3), "patches of 3 do not tile an image of 8 x 8"),
    (dict(heads=5), "width 64 does not split into 5 heads"),
  ],
)
def test_refusals(changes, says):
  with pytest.raises(ValueError, match=says):
    vit.init(config(**changes), (8, 8, 1), jax.random.key(0))


def test_perceptron_is_the_formula():
  given = perceptron.default_config()
  given.update(width=5, num_classes=3)
  params = perceptron.init(given, (2, 3, 2), jax.random.key(0))
  x = np.random.default_rng(0).normal(size=(4, 2, 3, 2))
  h = x.reshape(4, -1)
  for layer in params["layers"]:
    h = np.maximum(h @ layer["kernel"] + layer["bias"], 0)
  logits, features = perceptron.apply(given, params, jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(features, h, rtol=1e-4, atol=1e-5)
  want = h @ params["head"]["kernel"] + params["head"]["bias"]
  np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-5)
