"""Knowledge distillation on pairs of the teacher's ODE, to one step.

Paper: Luhman and Luhman 2021 (arXiv:2101.02388); no number of theirs on these data.
Run:   python -m distill_jax.train --config experiments/diffusion/ode_pairs.py[:data=digits]
  --workdir runs/ode_pairs
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.ode_pairs",
    solver_steps=18,  # of the teacher's Heun sampler, 2 N - 1 evaluations
    guidance=1.0,  # of the teacher
  )
  config = common.base(arg, method)
  return common.smoke(config) if config.arg.smoke else config
