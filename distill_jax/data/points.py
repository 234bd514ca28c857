"""Points of an exact distribution: {"x": float32[B, D], "label": int32[B]}.

`config.data.distribution` names one of `diffusion.distributions`. The 65,536 points of a seed are
always the same, so a resumed run sees the points that it would have seen.
"""

import functools

import grain
import jax
import numpy as np

from distill_jax.data.text import shuffled
from distill_jax.diffusion import distributions

POINTS = 1 << 16


def make(config) -> grain.IterDataset:
  """Batches without end, this process's share of each."""
  return shuffled(config, _Rows(config.data.distribution, config.seed), lambda row: row)


def spec(config) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of one global batch."""
  b = config.batch_size
  return dict(
    x=jax.ShapeDtypeStruct((b, *config.data.shape), np.float32),
    label=jax.ShapeDtypeStruct((b,), np.int32),
  )


def validation(config, n: int) -> dict[str, np.ndarray]:
  """n points that training never sees."""
  return _draw(config.data.distribution, 1 << 31, n)


class _Rows:
  """A random-access source of grain's."""

  def __init__(self, distribution: str, seed: int):
    self.points = _draw(distribution, seed, POINTS)

  def __len__(self):
    return POINTS

  def __getitem__(self, i):
    return {name: x[i] for name, x in self.points.items()}

  def __repr__(self):
    return "points"


@functools.cache
def _draw(distribution: str, seed: int, n: int) -> dict[str, np.ndarray]:
  cpu = jax.local_devices(backend="cpu")[0]
  with jax.default_device(cpu):
    x, label = jax.device_get(distributions.draw(distribution, jax.random.key(seed), n))
  return dict(x=x.astype(np.float32), label=label.astype(np.int32))
