"""Points of an exact distribution: the same at the same index, and others held out."""

import numpy as np

from distill_jax import config as config_lib
from distill_jax.data import points


def config(*overrides):
  return config_lib.load("experiments/diffusion/denoising.py:smoke", overrides)


def test_batches_are_as_the_spec_says_and_depend_on_the_seed_alone():
  first, again, other = (next(iter(points.make(config(f"seed={seed}")))) for seed in (0, 0, 1))
  for name, shape in points.spec(config()).items():
    assert first[name].shape == shape.shape and first[name].dtype == shape.dtype
    np.testing.assert_array_equal(first[name], again[name])
  assert not np.array_equal(first["x"], other["x"])


def test_an_iterator_that_is_put_back_goes_on_as_before():
  data = iter(points.make(config()))
  next(data)
  state = data.get_state()
  second = next(data)
  data.set_state(state)
  np.testing.assert_array_equal(next(data)["x"], second["x"])


def test_held_out_points_are_others_and_always_the_same():
  held, again = (points.validation(config(f"seed={seed}"), 64) for seed in (0, 5))
  np.testing.assert_array_equal(held["x"], again["x"])
  train = points._Rows("mixture25", 0).points["x"]
  assert not (train[:, None, 0] == held["x"][None, :, 0]).any()
