"""MMD at its optimum."""

import pytest

from distill_jax import config as config_lib
from distill_jax.diffusion import network as network_lib


@pytest.mark.parametrize("real", ["data", "teacher"])
def test_a_generator_of_the_data_is_at_no_distance(exact, real):
  config = config_lib.load("experiments/diffusion/mmd.py:smoke")
  embedder = network_lib.make(config, "fake")
  run, other = (
    exact.play(f"mmd:real={real}", student=exact.network(f), fake=embedder)
    for f in (exact.consistency, exact.denoiser)
  )
  assert abs(run.loss) < 0.01 * other.loss
