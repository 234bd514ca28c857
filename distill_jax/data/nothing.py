"""Empty batches: for methods that need no data, only networks that have seen some."""

from typing import Any

import grain


def make(config) -> grain.IterDataset:
  """Empty batches without end."""
  return grain.MapDataset.range(1).repeat().map(lambda _: {}).to_iter_dataset()


def spec(config) -> dict[str, Any]:
  return {}
