"""The diffusion transformer: shapes, adaLN-Zero at birth, patches in their places, forward mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion import network
from distill_jax.models import dit


def config(**changes):
  given = network.default_config()
  given.update(dict(name="dit", width=16, depth=2, num_classes=2, conditions=("label",)) | changes)
  return given


def born(given, shape):
  return jax.jit(lambda key: dit.init(given, shape, key))(jax.random.key(0))


@jax.jit
def shaken(params):
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(9), len(leaves))
  noise = [0.1 * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
  return jax.tree.map(jnp.add, params, tree.unflatten(noise))


def inputs(*shape):
  return jax.random.normal(jax.random.key(1), (2, *shape)), jnp.array([0.2, 1.2])


@pytest.mark.parametrize("shape, patch, places", [((8, 4, 3), 2, 8), ((6, 6, 1), 3, 4)])
def test_shapes_and_0_at_birth(shape, patch, places):
  given, (x, angle) = config(patch=patch), inputs(*shape)
  params = born(given, shape)
  condition = {"label": jnp.array([0, 2])}
  f, features = jax.jit(lambda p: dit.apply(given, p, x, angle, condition))(params)
  assert f.shape == x.shape and features.shape == (2, places, 16)
  np.testing.assert_array_equal(f, jnp.zeros_like(x))


def test_blocks_are_the_identity_at_birth_and_a_patch_goes_back_to_its_place():
  """With gates of 0 an output depends on its own patch alone."""
  given, (x, angle) = config(), inputs(4, 8, 1)
  params = born(given, (4, 8, 1))
  params["outputs"]["kernel"] = jax.random.normal(jax.random.key(2), (16, 4))
  apply = jax.jit(lambda x: dit.apply(given, params, x, angle, {})[0])
  moved = apply(x.at[:, 2, 5].add(1)) != apply(x)
  want = np.zeros((4, 8), bool)
  want[2:4, 4:6] = True
  np.testing.assert_array_equal(moved[0, ..., 0], want)
  trained = shaken(params)
  apply = jax.jit(lambda x: dit.apply(given, trained, x, angle, {})[0])
  assert bool(jnp.all(apply(x.at[:, 2, 5].add(1)) != apply(x)))


def test_places_are_told_apart():
  table = dit._positions(3, 4, 16)
  assert table.shape == (12, 16)
  gaps = np.linalg.norm(table[:, None] - table[None], axis=-1) + np.eye(12)
  assert gaps.min() > 0.5


def test_forward_mode_is_finite_differences():
  with jax.enable_x64(True):
    given, (x, angle) = config(), inputs(4, 4, 1)
    params = shaken(born(given, (4, 4, 1)))
    apply = jax.jit(lambda x, angle: dit.apply(given, params, x, angle, {})[0])
    _, tangent = jax.jvp(apply, (x, angle), (x, jnp.ones(2)))
    step = 1e-2  # norms are float32
    differences = apply(x * (1 + step), angle + step) - apply(x * (1 - step), angle - step)
    gap = jnp.linalg.norm(tangent - differences / (2 * step)) / jnp.linalg.norm(tangent)
    assert float(gap) < 0.05


def test_an_image_that_patches_do_not_tile_is_refused():
  with pytest.raises(ValueError, match="patches of 2 do not tile an image of 4 x 5"):
    dit.init(config(), (4, 5, 1), jax.random.key(0))
