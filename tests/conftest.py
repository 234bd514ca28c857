"""Eight simulated CPU devices for every test, set before jax is imported."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# XLA takes as many threads as devices: seven that wait in a collective and one whose product waits
# for helpers are all eight, and stand still
os.environ["PJRT_NPROC"] = "32"
# on a busy machine eight devices on two cores may keep each other waiting for long
os.environ["XLA_FLAGS"] = (
  "--xla_force_host_platform_device_count=8"
  " --xla_cpu_collective_call_warn_stuck_timeout_seconds=120"
  " --xla_cpu_collective_call_terminate_timeout_seconds=600"
  # collectives in one order on every device: otherwise two of them may wait for each other
  " --xla_cpu_enable_concurrency_optimized_scheduler=false"
  " --xla_backend_optimization_level=0"  # compiling takes half the time, and tests mostly compile
)

import pathlib

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def programs_are_dropped():
  """A process that has compiled thousands of programs runs out of memory maps."""
  yield
  jax.clear_caches()


def pytest_addoption(parser):
  parser.addoption(
    "--golden-dir",
    type=pathlib.Path,
    default=pathlib.Path(__file__).parent / "golden",
    help="folder of golden values, FAMILY/METHOD.npz or METHOD.npz (default: tests/golden)",
  )
