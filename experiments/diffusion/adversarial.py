"""A GAN on frozen features to one step: LADD; `variant=add` adds the distance to the teacher,
`variant=frozen` moves few of the generator's layers.

Paper: Sauer et al. 2023 (arXiv:2311.17042), Sauer et al. 2024 (arXiv:2403.12015), Zheng and Yang
  2025 (arXiv:2506.09376); no number of theirs on these data.
Run:   python -m distill_jax.train --config
  experiments/diffusion/adversarial.py[:data=digits,variant=add] --workdir runs/adversarial
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.adversarial",
    loss="logistic",  # hinge | logistic
    distillation=0.0,  # weight of the distance to the teacher's denoised image
    r1=0.01,  # weight of the penalty on the discriminator's slope at data
    r1_distance=0.1,  # of the points that the slope is taken between
    freeze="",  # regex of paths of the generator's parameters that stay
    ratio=1,  # moves of the discriminator for each of the generator
    cadence="every",
  )
  config = common.base(arg, method, variant="ladd")
  common.two_players(config)
  if config.arg.variant == "add":
    config.method.loss, config.method.distillation = "hinge", 0.1  # the paper's 2.5
  if config.arg.variant == "frozen":
    config.method.freeze = "second|down/0|up/0"  # the last matrix of each block; the outer levels
  return common.smoke(config) if config.arg.smoke else config
