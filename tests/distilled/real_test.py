"""Draws from the real set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.distilled import real as real_lib
from distill_jax.distilled.real import Real

LABEL = jnp.array([0] * 5 + [1] * 3)
REAL = Real(
  jax.random.normal(jax.random.key(0), (8, 4, 4, 1)), LABEL, jnp.array([0, 5]), jnp.array([5, 3])
)


def test_images_of_every_class_come_class_after_class():
  rows = real_lib.rows_of_classes(jax.random.key(1), REAL, 40)
  np.testing.assert_array_equal(LABEL[rows], np.repeat([0, 1], 40))
  assert set(np.asarray(rows).tolist()) == set(range(8))
  x, label = real_lib.of_classes(jax.random.key(1), REAL, 40)
  np.testing.assert_array_equal(x, REAL.x[rows])
  np.testing.assert_array_equal(label, LABEL[rows])


@pytest.mark.parametrize("n", [1, 64, 67, 150])  # one, a chunk, a prime, chunks of 50
def test_chunks_change_nothing(n):
  rows = jax.random.randint(jax.random.key(2), (n,), 0, 8)
  double = lambda x: 2 * x[..., 0]  # noqa: E731
  seen = []

  def function(x):
    seen.append(len(x))
    return double(x)

  made = real_lib.in_chunks(function, REAL, rows)
  np.testing.assert_array_equal(made, double(REAL.x[rows]))
  assert max(seen) <= real_lib.CHUNK
