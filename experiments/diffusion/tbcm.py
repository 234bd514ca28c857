"""TBCM: continuous-time consistency on the teacher's path from noise, without images.

Paper: Tang et al. 2025 (arXiv:2511.20410); no number of theirs on these data.
Run:   python -m distill_jax.train --config experiments/diffusion/tbcm.py
  --workdir runs/tbcm
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.tbcm",
    points=8,  # of a path
    tangent_warmup=1000,  # steps
    c=0.1,  # of the tangent's norm
    prior_weight=True,  # 1 / sigma
  )
  config = common.base(arg, method)
  if config.arg.data == "mixture25":
    config.noise.mean, config.noise.std = 0.5, 1.6
  else:
    config.noise.mean, config.noise.std = -1.0, 1.4
  return common.smoke(config) if config.arg.smoke else config
