"""MeanFlow to one step; `variant=improved`, or `variant=distilled` from a teacher's velocity.

Paper: Geng et al. 2025 (arXiv:2505.13447, 2512.02012); no number of theirs on these data.
Run:   python -m distill_jax.train --config experiments/diffusion/meanflow.py[:variant=distilled]
  --workdir runs/meanflow
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.meanflow",
    solver="data",  # data | teacher: whose velocity
    improved=False,
    equal=0.5,  # share of examples with r = t; 0.75 in the paper, 0.5 in the improved form
    guidance=1.0,  # learned in; needs label_drop
    p=0.0,  # of the adaptive weight: 1 in the paper; biased in two dimensions (docs/diffusion.md)
    c=0.01,
    label_drop=0.0,
  )
  config = common.base(arg, method, variant="paper")
  config.method.improved = config.arg.variant == "improved"
  config.method.solver = "teacher" if config.arg.variant == "distilled" else "data"
  config.models.student.conditions = ("label", "second")
  if config.arg.data == "mixture25":
    config.noise.name = "uniform_flow"
    config.noise.low, config.noise.high = 0.0, 0.96
  else:
    config.method.p = 1.0
    config.noise.name = "logit_normal_flow"
    config.noise.mean, config.noise.std = -0.4, 1.0  # the paper's
  config.sampler.name = "flow_map"
  return common.smoke(config) if config.arg.smoke else config
