"""Reflow to one step; `variant=rfpp` (2-RF++), or `variant=slimflow` to a smaller student.

Paper: Liu et al. 2022 (arXiv:2209.03003), Lee et al. 2024 (arXiv:2405.20320), Zhu et al. 2024
  (arXiv:2407.12718); no number of theirs on these data.
Run:   python -m distill_jax.train --config experiments/diffusion/reflow.py[:variant=rfpp]
  --workdir runs/reflow
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.reflow",
    solver_steps=18,  # of the teacher's Heun sampler, 2 N - 1 evaluations
    guidance=1.0,  # of the teacher
    times="uniform",  # uniform | u_shaped
    distance="squared",  # squared | pseudo_huber
    anneal=0,  # steps in which fresh noise gives way to the pairs' own; 0: none
  )
  config = common.base(arg, method, variant="reflow")
  if config.arg.variant == "rfpp":
    config.method.times, config.method.distance = "u_shaped", "pseudo_huber"
  if config.arg.variant == "slimflow":
    config.method.anneal = config.steps // 2
    config.models.student.width //= 2
  config.sampler.sigmas = (1e4,)  # t = 1 of the flow
  return common.smoke(config) if config.arg.smoke else config
