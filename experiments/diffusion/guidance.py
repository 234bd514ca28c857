"""Guidance distillation, stage one: the guided teacher in one evaluation instead of two.

Paper: Meng et al. 2022 (arXiv:2210.03142); no number of theirs on these data.
Run:   python -m distill_jax.train --config experiments/diffusion/guidance.py
  --workdir runs/guidance
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from ml_collections import ConfigDict

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.guidance",
    guidance=ConfigDict(dict(low=1.0, high=4.0)),  # scales; the paper's is 1 to 5 (its w 0 to 4)
    weight="truncated_snr",  # constant | snr | truncated_snr | snr_plus_one
  )
  config = common.base(arg, method)
  config.models.student.conditions = ("label", "guidance")
  config.sampler.name = "heun"
  return common.smoke(config) if config.arg.smoke else config
