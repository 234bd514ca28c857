"""SiD to one step; `variant=sida` adds the discriminator, `variant=lsg` guides both scores.

Paper: Zhou et al. 2024 (arXiv:2404.04057, 2406.01561, 2410.14919); no number of theirs on these
  data.
Run:   python -m distill_jax.train --config experiments/diffusion/sid.py[:data=digits,variant=sida]
  --workdir runs/sid
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from ml_collections import ConfigDict

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.sid",
    alpha=1.0,  # the paper's 1.2 or 1; 1/2 is the exact gradient (docs/diffusion.md)
    adversarial=0.0,  # weight of SiDA's discriminator
    label_drop=0.1,  # of the fake score, where it is guided
    guidance=ConfigDict(dict(teacher=1.0, fake=1.0)),  # scales, 1 is none
    ratio=1,  # moves of the fake score for each of the generator
    cadence="every",
  )
  config = common.base(arg, method, variant="sid")
  common.two_players(config)
  config.noise.name = "karras"
  config.noise.low, config.noise.high = 0.2, 1.0
  if config.arg.variant == "sida":
    config.method.adversarial = 0.01
  if config.arg.variant == "lsg":
    config.method.guidance.teacher = config.method.guidance.fake = 1.5
  return common.smoke(config) if config.arg.smoke else config
