"""Consistency distillation; `variant=ct`, `ict`, `ect` train on data, `cd_ect` distils on ECT's
pairs.

Paper: Song et al. 2023 (arXiv:2303.01469), Song and Dhariwal 2023 (arXiv:2310.14189), Geng et al.
  2024 (arXiv:2406.14548); no number of theirs on these data.
Run:   python -m distill_jax.train --config experiments/diffusion/consistency.py[:variant=ict]
  --workdir runs/consistency
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.consistency",
    times="grid",  # grid | ict | ect
    solver="heun",  # heun | euler: of the teacher; data: no teacher
    scales=18,  # levels of the grid
    scales_end=18,  # at the end
    target_decay=0.95,  # of the target's average; 0: the student is the target
    weight="uniform",  # of `grid`: discretization.cm_weight
    huber=0.0,  # c of `ect`; 0 is the Euclidean distance
    q=2.0,  # of `ect`: s / t is about 1 - q^-(stage + 1)
    stages=8,  # of `ect`
    guidance=1.0,  # of the teacher
    label_drop=0.0,
  )
  config = common.base(arg, method, variant="cd")
  variant, method = config.arg.variant, config.method
  if variant == "ct":
    method.solver, method.scales, method.scales_end, method.target_decay = "data", 2, 150, 0.9
  if variant == "ict":
    method.times, method.solver, method.target_decay = "ict", "data", 0.0
    method.scales, method.scales_end = 10, 1280
  if variant in ("ect", "cd_ect"):
    method.times, method.target_decay = "ect", 0.0
    method.solver = "data" if variant == "ect" else "heun"
  if variant in ("ict", "ect", "cd_ect") and config.arg.data != "mixture25":
    config.noise.mean, config.noise.std = -1.1, 2.0  # the papers'
  config.sampler.sigmas = (config.noise.sigma_max,)
  return common.smoke(config) if config.arg.smoke else config
