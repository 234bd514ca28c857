"""DisBack to one step.

Paper: Zhang et al. 2024 (arXiv:2408.15991); no number of theirs on these data.
Run:   python -m distill_jax.train --config experiments/diffusion/disback.py[:data=digits]
  --workdir runs/disback
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.disback",
    checkpoints=5,  # the teacher's copy, and those on the way to the student's distribution
    degradation=200,  # steps
    hold=100,  # steps for each target
    ratio=1,  # moves of the fake score for each of the generator
    cadence="every",
  )
  config = common.base(arg, method)
  common.two_players(config)
  config.noise.name = "karras"
  if config.arg.smoke:
    config.method.degradation = 0
    config.method.hold = 1
    config = common.smoke(config)
  return config
