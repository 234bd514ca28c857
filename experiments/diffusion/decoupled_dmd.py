"""Decoupled DMD to one step, or four with `steps=4`.

Paper: Liu et al. 2025 (arXiv:2511.22677); no number of theirs on these data.
Run:   python -m distill_jax.train --config experiments/diffusion/decoupled_dmd.py[:steps=4]
  --workdir runs/decoupled_dmd
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.decoupled_dmd",
    sigmas=(20.0,),  # the student's steps
    guidance=1.5,  # of the augmentation; 1 leaves the matching alone
    ratio=1,  # moves of the fake score for each of the generator
    cadence="every",
  )
  config = common.base(arg, method, steps=1)
  common.two_players(config)
  config.noise.name = "karras"
  config.method.sigmas = (config.noise.sigma_max,)
  if config.arg.steps == 4:
    config.method.sigmas = (config.noise.sigma_max, 4.0, 1.0, 0.3)
  config.sampler.sigmas = config.method.sigmas
  return common.smoke(config) if config.arg.smoke else config
