"""DMD to one step: distribution matching and regression on the teacher's ODE.

Paper: Yin et al. 2023 (arXiv:2311.18828); no number of theirs on these data.
Run:   python -m distill_jax.train --config experiments/diffusion/dmd.py[:data=digits]
  --workdir runs/dmd
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.dmd",
    regression=0.25,  # weight; the paper's, there of LPIPS
    pairs=18,  # Heun steps from noise to the regression's target
    guidance=1.0,
    ratio=1,  # moves of the fake score for each of the generator
    cadence="every",
  )
  config = common.base(arg, method)
  common.two_players(config)
  config.noise.name = "karras"
  if config.arg.smoke:
    config.method.pairs = 4
    config = common.smoke(config)
  return config
