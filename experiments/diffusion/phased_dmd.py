"""Phased DMD to two steps, one for each of two intervals of noise.

Paper: Fan et al. 2025 (arXiv:2510.27684); no number of theirs on these data.
Run:   python -m distill_jax.train --config experiments/diffusion/phased_dmd.py[:data=digits]
  --workdir runs/phased_dmd
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.phased_dmd",
    sigmas=(20.0, 1.0),  # where the phases begin
    margin=0.02,  # of a phase's interval that is left out at its clean end
    weight_max=100.0,  # of the fake score's loss; the paper's is not known
    guidance=1.0,
    ratio=1,  # moves of the fake score for each of the generator
    cadence="every",
  )
  config = common.base(arg, method)
  common.two_players(config)
  config.method.sigmas = (config.noise.sigma_max, 1.0)
  config.sampler.sigmas = config.method.sigmas
  return common.smoke(config) if config.arg.smoke else config
