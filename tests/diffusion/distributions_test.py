"""Distributions by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.config import ConfigError
from distill_jax.diffusion import distributions


def test_mixture25_is_a_grid_whose_rows_are_classes():
  exact = distributions.named("mixture25")
  assert (
    exact.means.shape == (25, 2) and len(set(map(tuple, np.asarray(exact.means).tolist()))) == 25
  )
  x, label = distributions.draw("mixture25", jax.random.key(0), 10_000)
  assert x.shape == (10_000, 2) and label.dtype == jnp.int32
  np.testing.assert_allclose(np.bincount(label) / 10_000, np.full(5, 0.2), atol=0.015)
  nearest = jnp.argmin(jnp.linalg.norm(x[:, None] - exact.means, axis=-1), axis=1)
  assert float(jnp.mean(exact.labels[nearest] == label)) > 0.999
  sd = float(jnp.std(x))
  assert sd == pytest.approx(2.01**0.5, rel=0.02)  # what networks are told


def test_a_draw_is_of_its_key_alone():
  first, again = (distributions.draw("mixture25", jax.random.key(1), 8) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  other = distributions.draw("mixture25", jax.random.key(2), 8)
  assert not np.array_equal(first[0], other[0])


def test_an_unknown_one_is_refused():
  with pytest.raises(ConfigError, match=r"No distribution 'mixture24'\. Did you mean 'mixture25'"):
    distributions.named("mixture24")
