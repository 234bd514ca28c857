"""Eight simulated CPU devices for every test, set before jax is imported."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import pathlib


def pytest_addoption(parser):
  parser.addoption(
    "--golden-dir",
    type=pathlib.Path,
    default=pathlib.Path(__file__).parent / "golden",
    help="folder of golden values, FAMILY/METHOD.npz or METHOD.npz (default: tests/golden)",
  )
