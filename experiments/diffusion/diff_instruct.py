"""Diff-Instruct to one step; `variant=swiftbrush` has VSD's weight and guidance, `variant=snoopi`
random guidance.

Paper: Luo et al. 2023 (arXiv:2305.18455), Nguyen and Tran 2023 (arXiv:2312.05239), Nguyen et al.
  2024 (arXiv:2412.02687); no number of theirs on these data.
Run:   python -m distill_jax.train --config
  experiments/diffusion/diff_instruct.py[:data=digits,variant=snoopi] --workdir runs/diff_instruct
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from ml_collections import ConfigDict

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.diff_instruct",
    weight="x0",  # or of losses.scores.noise_weight: sds | uniform | fantasia3d | ratio
    guidance=ConfigDict(dict(low=1.0, high=1.0, both=False)),  # both: the fake score is guided too
    label_drop=0.1,  # of the fake score, where it is guided
    ratio=1,  # moves of the fake score for each of the generator
    cadence="every",
  )
  config = common.base(arg, method, variant="diff_instruct")
  common.two_players(config)
  method = config.method
  if config.arg.variant == "swiftbrush":
    method.weight = "sds"
    method.guidance.low = method.guidance.high = 1.5  # the paper's 4.5, of text
  if config.arg.variant == "snoopi":
    method.weight = "sds"
    method.guidance.low, method.guidance.high = 1.0, 2.0
  return common.smoke(config) if config.arg.smoke else config
