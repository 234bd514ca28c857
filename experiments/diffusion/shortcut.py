"""Shortcut models; `solver=teacher` distils a teacher's velocity.

Paper: Frans et al. 2024 (arXiv:2410.12557); no number of theirs on these data.
Run:   python -m distill_jax.train --config experiments/diffusion/shortcut.py[:solver=teacher]
  --workdir runs/shortcut
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.shortcut",
    solver="data",  # data | teacher: whose velocity at step size 0
    levels=7,  # the base steps are of size 2^-levels
    bootstrap=0.25,  # share of the batch; 1/8 in the authors' code
    clip=4.0,  # of bootstrapped points, for latents of unit variance; 0: none
  )
  config = common.base(arg, method, solver="data")
  config.method.solver = config.arg.solver
  config.models.student.conditions = ("label", "second")
  if config.arg.data == "mixture25":
    config.method.clip = 0.0
  config.sampler.name = "flow_map"
  config.sampler.sigmas = (1e4,)  # t = 1 of the flow
  return common.smoke(config) if config.arg.smoke else config
