"""Multistep consistency models of `segments=2`, 4 or 1 steps.

Paper: Heek et al. 2024 (arXiv:2403.06807); no number of theirs on these data.
Run:   python -m distill_jax.train
  --config experiments/diffusion/multistep_consistency.py[:segments=4]
  --workdir runs/multistep_consistency
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

import math

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.multistep_consistency",
    segments=2,  # steps of the student
    first=16,  # steps of the teacher, at first and at the end; 64 and 1280 in the paper
    last=64,
    eta=0.0,  # of aDDIM, 0.1 in the paper; 0 is DDIM
  )
  config = common.base(arg, method, segments=2)
  config.method.segments = m = config.arg.segments
  if config.arg.data != "mixture25":
    config.method.first, config.method.last, config.method.eta = 64, 1280, 0.1
  low, high = math.atan(config.noise.sigma_min), math.atan(config.noise.sigma_max)
  config.sampler.name = "euler"
  config.sampler.sigmas = tuple(math.tan(low + i / m * (high - low)) for i in range(m, 0, -1))
  return common.smoke(config) if config.arg.smoke else config
