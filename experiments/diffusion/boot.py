"""BOOT: the signal-ODE by bootstrapping, from noise alone, to one step.

Paper: Gu et al. 2023 (arXiv:2306.05544); no number of theirs on these data.
Run:   python -m distill_jax.train --config experiments/diffusion/boot.py
  --workdir runs/boot
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.boot",
    levels=32,  # of the grid of times
    boundary=0.1,  # weight of the loss at pure noise
  )
  config = common.base(arg, method)
  config.models.student.conditions = ("label", "second")
  config.sampler.name = "flow_map"
  return common.smoke(config) if config.arg.smoke else config
