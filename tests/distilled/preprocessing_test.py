"""Preprocessing against its inverse and what it is for: unit variance, then no correlation."""

import numpy as np
import pytest

from distill_jax.config import ConfigError
from distill_jax.distilled import preprocessing


def images(n=400, seed=0):
  """Correlated pixels of two channels, of other means and scales."""
  rng = np.random.default_rng(seed)
  flat = rng.normal(size=(n, 18)) @ rng.normal(size=(18, 18))
  return (flat.reshape(n, 3, 3, 2) * [0.3, 2.0] + [0.5, -1.0]).astype(np.float32)


@pytest.mark.parametrize("kind", preprocessing.KINDS)
def test_the_inverse_gives_the_images_back(kind):
  x = images()
  arrays = preprocessing.fit(kind, x)
  seen = preprocessing.apply(arrays, x)
  assert seen.dtype == np.float32 and seen.shape == x.shape
  np.testing.assert_allclose(preprocessing.invert(arrays, seen), x, rtol=1e-4, atol=1e-4)


def test_standardized_channels():
  x = images()
  seen = preprocessing.apply(preprocessing.fit("standardize", x), x)
  np.testing.assert_allclose(seen.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(seen.std((0, 1, 2)), 1, rtol=1e-5)


def test_whitened_pixels_have_variance_s_over_s_plus_epsilon():
  x = images()
  standard = preprocessing.apply(preprocessing.fit("standardize", x), x).reshape(len(x), -1)
  values = np.linalg.eigvalsh(np.cov(standard.astype(float).T, bias=True))
  flat = preprocessing.apply(preprocessing.fit("zca", x, epsilon=0.1), x).reshape(len(x), -1)
  got = np.linalg.eigvalsh(np.cov(flat.astype(float).T, bias=True))
  np.testing.assert_allclose(got, values / (values + 0.1), rtol=1e-4, atol=1e-5)


def test_a_constant_channel_is_not_divided_by_zero():
  x = np.zeros((4, 2, 2, 1), np.float32)
  arrays = preprocessing.fit("standardize", x)
  assert np.isfinite(preprocessing.apply(arrays, x)).all()


def test_an_unknown_kind_is_refused():
  with pytest.raises(ConfigError, match=r"data\.preprocess: no 'pca': none, standardize, zca"):
    preprocessing.fit("pca", images(4))
