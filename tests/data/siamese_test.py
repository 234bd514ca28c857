"""Siamese augmentation: each operation by hand, per image and shared, and what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.data import siamese

SHAPE = (6, 8)
SIZE = (3, 4)
CALLS = {  # operation, and two sets of parameters
  "brightness": (siamese.brightness, [(0.3,), (-0.2,)]),
  "saturation": (siamese.saturation, [(0.3,), (1.7,)]),
  "contrast": (siamese.contrast, [(0.6,), (1.4,)]),
  "crop": (siamese.crop, [(1, -2), (-1, 0)]),
  "cutout": (lambda x, r, c: siamese.cutout(x, r, c, size=SIZE), [(0, 8), (3, 2)]),
  "flip": (siamese.flip, [(True,), (False,)]),
  "scale": (siamese.scale, [(1.2, 0.9), (0.8, 1.1)]),
  "rotate": (siamese.rotate, [(0.2,), (-0.1,)]),
}


def images(seed=0, n=2, shape=SHAPE):
  return jax.random.normal(jax.random.key(seed), (n, *shape, 3))


@pytest.mark.parametrize("name", CALLS)
def test_one_parameter_for_each_image(name):
  function, values = CALLS[name]
  x = images()
  each = function(x, *(jnp.array(v) for v in zip(*values, strict=True)))
  alone = [function(x[k : k + 1], *values[k])[0] for k in range(2)]
  np.testing.assert_allclose(each, np.stack(alone), rtol=1e-5, atol=1e-6)
  assert each.shape == x.shape and np.max(np.abs(each - x)) > 0.01


def test_doing_nothing():
  x = images()
  same = [
    siamese.brightness(x, 0.0),
    siamese.saturation(x, 1.0),
    siamese.contrast(x, 1.0),
    siamese.crop(x, 0, 0),
    siamese.cutout(x, 1, 1, size=(0, 0)),
    siamese.flip(x, False),
    siamese.scale(x, 1.0, 1.0),
    siamese.rotate(x, 0.0),
  ]
  for y in same:
    np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-5)


def test_colors_keep_their_means():
  x = images()
  np.testing.assert_allclose(
    jnp.mean(siamese.saturation(x, 0.0), -1), jnp.mean(x, -1), rtol=1e-5, atol=1e-6
  )
  flat = siamese.contrast(x, 0.0)
  np.testing.assert_allclose(flat, jnp.broadcast_to(flat[:, :1, :1, :1], x.shape), atol=1e-6)
  grey = x[..., :1]
  np.testing.assert_allclose(siamese.saturation(grey, 0.1), grey, atol=1e-6)


def test_crop_and_cutout_at_the_borders():
  x = np.asarray(images())
  y = siamese.crop(x, 2, -1)
  np.testing.assert_array_equal(y[:, :4, 1:], x[:, 2:, :-1])
  assert not np.any(y[:, 4:]) and not np.any(y[:, :, :1])
  assert not np.any(siamese.crop(x, 6, 0))
  y = np.array(siamese.cutout(x, 0, 8, size=SIZE))
  assert not np.any(y[:, :2, 6:])
  y[:, :2, 6:] = x[:, :2, 6:]
  np.testing.assert_array_equal(y, x)


def test_flips_and_turns():
  x = images(shape=(6, 6))
  np.testing.assert_array_equal(siamese.flip(x, True), x[:, :, ::-1])
  near = dict(rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(siamese.rotate(x, jnp.pi), x[:, ::-1, ::-1], **near)
  np.testing.assert_allclose(siamese.rotate(x, jnp.pi / 2), jnp.rot90(x, axes=(1, 2)), **near)
  np.testing.assert_allclose(siamese.scale(x, -1.0, 1.0), x[:, :, ::-1], **near)


def test_scale_shows_nothing_beyond_the_image():
  y = siamese.scale(jnp.ones((1, 8, 8, 1)), 2.0, 1.0)[0, :, :, 0]
  np.testing.assert_allclose(y[:, 2:6], 1.0)
  np.testing.assert_allclose(y[:, [0, 1, 6, 7]], np.broadcast_to([0, 0, 0, 0], (8, 4)), atol=1e-6)


@pytest.mark.parametrize("name", ["crop", "cutout", "flip", "scale", "rotate"])
def test_gradients_are_the_adjoint(name):
  function, values = CALLS[name]
  x, y = images(0), images(1)
  out, pull = jax.vjp(lambda x: function(x, *values[0]), x)
  np.testing.assert_allclose(jnp.vdot(out, y), jnp.vdot(x, pull(y)[0]), rtol=1e-4, atol=1e-4)


def test_two_batches_share_what_is_drawn():
  a, b = images(0, 2), images(1, 3)
  apply = jax.jit(lambda key, x: siamese.augment(x, siamese.draw(key, SHAPE)))
  for seed in range(8):
    key = jax.random.key(seed)
    both = apply(key, jnp.concatenate([a, b]))
    np.testing.assert_allclose(both, jnp.concatenate([apply(key, a), apply(key, b)]), atol=1e-5)


def test_one_operation_is_applied():
  x = images()
  drawn = siamese.draw(jax.random.key(0), SHAPE)._replace(flip=True)
  for k, name in enumerate(siamese.OPERATIONS):
    y = siamese.augment(x, drawn._replace(operation=k))
    alone = siamese.augment(x, drawn._replace(operation=0), operations=(name,))
    np.testing.assert_allclose(y, alone, atol=1e-6)
  color = siamese.augment(x, drawn._replace(operation=0))
  want = siamese.contrast(
    siamese.saturation(siamese.brightness(x, drawn.brightness), drawn.saturation), drawn.contrast
  )
  np.testing.assert_allclose(color, want, atol=1e-6)


def test_ranges_of_what_is_drawn():
  n = 4000
  drawn = siamese.draw(jax.random.key(0), (16, 32), batch=n)
  for values, low, high in [
    (drawn.brightness, -0.5, 0.5),
    (drawn.saturation, 0, 2),
    (drawn.contrast, 0.5, 1.5),
    (drawn.angle, -np.pi / 12, np.pi / 12),
    *((s, 1 / 1.2, 1.2) for s in drawn.scale),
  ]:
    assert values.shape == (n,) and low <= values.min() and values.max() <= high
    np.testing.assert_allclose(np.mean(values), (low + high) / 2, atol=0.05 * (high - low))
  for values, most in zip(drawn.shift, (2, 4), strict=True):
    assert set(np.unique(values)) == set(range(-most, most + 1))
  for values, side in zip(drawn.corner, (16, 32), strict=True):  # even squares, so `side` too
    assert set(np.unique(values)) == set(range(side + 1))
  assert set(np.unique(drawn.flip)) == {False, True}
  assert abs(np.corrcoef(*drawn.scale)[0, 1]) < 0.1
  keys = jax.random.split(jax.random.key(1), 200)
  drawn = jax.vmap(lambda key: siamese.draw(key, SHAPE))(keys)
  assert set(np.unique(drawn.operation)) == set(range(6))


def test_types_and_names():
  drawn = siamese.draw(jax.random.key(0), SHAPE, batch=2)
  for k in range(6):
    x = images().astype(jnp.bfloat16)
    assert siamese.augment(x, drawn._replace(operation=k)).dtype == jnp.bfloat16
  for names in ((), ("blur",)):
    with pytest.raises(ValueError, match="operations"):
      siamese.draw(jax.random.key(0), SHAPE, operations=names)
    with pytest.raises(ValueError, match="operations"):
      siamese.augment(images(), drawn, operations=names)
