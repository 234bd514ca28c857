"""The U-Net: shapes at every size, birth, forward mode, attention where it is asked for, and that
its lists survive a file."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion import network
from distill_jax.models import pretrained, unet


def config(**changes):
  given = network.default_config()
  given.update(dict(name="unet", width=8, num_classes=2, conditions=("label",)) | changes)
  return given


@functools.cache
def born(shape, seed=0):
  """Parameters of the default network."""
  return jax.jit(lambda key: unet.init(config(), shape, key))(jax.random.key(seed))


@jax.jit
def shaken(params):
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(9), len(leaves))
  noise = [0.1 * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
  return jax.tree.map(jnp.add, params, tree.unflatten(noise))


@pytest.mark.parametrize(
  "shape, multipliers, attention, places",
  [((8, 8, 1), (1, 2), (4,), 16), ((12, 8, 3), (1, 2, 2), (), 6), ((3, 5, 2), (1,), (3,), 15)],
)
def test_shapes(shape, multipliers, attention, places):
  given = config(multipliers=multipliers, attention=attention)
  params = jax.eval_shape(lambda key: unet.init(given, shape, key), jax.random.key(0))
  x, angle = jax.ShapeDtypeStruct((2, *shape), jnp.float32), jnp.ones(2)
  f, features = jax.eval_shape(lambda p, x: unet.apply(given, p, x, angle, {}), params, x)
  assert f.shape == (2, *shape) and features.shape == (2, places, 8 * multipliers[-1])
  heights = [shape[0] >> i for i in range(len(multipliers))]
  assert ["attention" in block for block in params["down"]] == [h in attention for h in heights]
  assert ["attention" in block for block in params["up"]] == [h in attention for h in heights]


def test_at_birth_it_says_0_and_once_trained_it_hears_of_time_and_label():
  given = config()
  params = born((4, 4, 1))
  x, angle = jax.random.normal(jax.random.key(1), (2, 4, 4, 1)), jnp.array([0.2, 1.2])
  apply = jax.jit(lambda p, angle, label: unet.apply(given, p, x, angle, {"label": label})[0])
  label = jnp.array([0, 1])
  np.testing.assert_array_equal(apply(params, angle, label), jnp.zeros_like(x))
  params = shaken(params)
  base = apply(params, angle, label)
  for other in (apply(params, angle + 0.2, label), apply(params, angle, label[::-1])):
    assert float(jnp.abs(other - base).max((1, 2, 3)).min()) > 1e-4


def test_examples_do_not_see_each_other():
  given = config()
  params = shaken(born((4, 4, 1)))
  x, angle = jax.random.normal(jax.random.key(1), (3, 4, 4, 1)), jnp.array([0.2, 0.7, 1.2])
  apply = jax.jit(lambda x, angle: unet.apply(given, params, x, angle, {})[0])
  alone = jnp.concatenate([apply(x[i : i + 1], angle[i : i + 1]) for i in range(3)])
  np.testing.assert_allclose(apply(x, angle), alone, rtol=1e-4, atol=1e-5)


def test_forward_mode_is_finite_differences():
  given = config()
  params = shaken(born((4, 4, 1)))
  x, angle = jax.random.normal(jax.random.key(1), (2, 4, 4, 1)), jnp.array([0.2, 1.2])
  apply = jax.jit(lambda x, angle: unet.apply(given, params, x, angle, {})[0])
  _, tangent = jax.jvp(apply, (x, angle), (x, jnp.ones(2)))
  step = 1e-2
  differences = apply(x * (1 + step), angle + step) - apply(x * (1 - step), angle - step)
  gap = jnp.linalg.norm(tangent - differences / (2 * step)) / jnp.linalg.norm(tangent)
  assert float(gap) < 0.05


def test_group_norm_is_the_formula():
  x = 3 + 2 * np.random.default_rng(0).normal(size=(2, 4, 4, 16)).astype("f4")
  params = dict(scale=jnp.arange(16.0), bias=jnp.arange(16.0)[::-1])
  g = x.astype("f8").reshape(2, 16, 8, 2)
  g = (g - g.mean((1, 3), keepdims=True)) / np.sqrt(g.var((1, 3), keepdims=True) + 1e-5)
  want = g.reshape(x.shape) * np.arange(16) + np.arange(16)[::-1]
  np.testing.assert_allclose(unet.normalize(params, jnp.asarray(x)), want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_file_gives_back_the_same_network(tmp_path):
  given = config()
  params = shaken(born((4, 4, 1)))
  pretrained.save(tmp_path, params, given, "float32")
  loaded = pretrained.load(str(tmp_path))
  assert jax.tree.structure(loaded) == jax.tree.structure(params)
  grafted = network.graft(born((4, 4, 1), 1), loaded)
  jax.tree.map(np.testing.assert_array_equal, grafted, params)


@pytest.mark.parametrize("shape", [(6, 8, 1), (8, 6, 1)])
def test_an_image_that_cannot_be_halved_is_refused(shape):
  with pytest.raises(ValueError, match=f"{shape[0]} x {shape[1]} cannot be halved 2 times"):
    unet.init(config(multipliers=(1, 1, 1)), shape, jax.random.key(0))
