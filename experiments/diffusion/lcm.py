"""Latent consistency distillation; `segments=4` is trajectory-segmented (Hyper-SD, PCM).

Paper: Luo et al. 2023 (arXiv:2310.04378), Ren et al. 2024 (arXiv:2404.13686), Wang et al. 2024
  (arXiv:2405.18407); no number of theirs on these data.
Run:   python -m distill_jax.train --config experiments/diffusion/lcm.py[:segments=4]
  --workdir runs/lcm
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from ml_collections import ConfigDict

from distill_jax.diffusion.schedules import karras_sigma
from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.lcm",
    levels=32,  # of the teacher's DDIM; 50 in the paper
    segments=1,
    guidance=ConfigDict(dict(low=1.0, high=3.0)),  # scales; the paper's are 3 to 15
    target_decay=0.95,  # of the target's average; 0: the student is the target
  )
  config = common.base(arg, method, segments=1)
  config.method.segments = config.arg.segments
  config.models.student.conditions = ("label", "guidance")
  if config.arg.segments > 1:
    config.sampler.name = "euler"
    config.sampler.sigmas = _tops(config)
  return common.smoke(config) if config.arg.smoke else config


def _tops(config):
  """The noise levels where the segments begin, descending."""
  n, m = config.method.levels, config.method.segments
  tops = [n, *(j * n // m for j in range(m - 1, 0, -1))]
  low, high = config.noise.sigma_min, config.noise.sigma_max
  return tuple(karras_sigma((n - top) / (n - 1), low, high) for top in tops)
