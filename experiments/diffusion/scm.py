"""sCD, continuous-time consistency distillation; `variant=sct` trains on data.

Paper: Lu and Song 2024 (arXiv:2410.11081); no number of theirs on these data.
Run:   python -m distill_jax.train --config experiments/diffusion/scm.py[:variant=sct]
  --workdir runs/scm
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.scm",
    solver="teacher",  # teacher | data: whose velocity
    tangent_warmup=1000,  # steps; 10,000 in the paper
    normalize=True,  # the tangent, by its norm + c
    c=0.1,
    prior_weight=True,  # 1 / sigma; the paper learns a weight on top
    label_drop=0.0,
  )
  config = common.base(arg, method, variant="scd")
  if config.arg.variant == "sct":
    config.method.solver = "data"
  if config.arg.data == "mixture25":
    # normalised tangents are biased in two dimensions (docs/diffusion.md)
    config.method.normalize = config.arg.variant != "sct"
    config.noise.mean, config.noise.std = 0.5, 1.6
  else:
    config.noise.mean, config.noise.std = -1.0, 1.4  # the paper's
  return common.smoke(config) if config.arg.smoke else config
