"""DMD2 to one step, or four with `steps=4`; f-distill by `divergence`.

Paper: Yin et al. 2024 (arXiv:2405.14867), Xu et al. 2025 (arXiv:2502.15681); no number of theirs on
  these data.
Run:   python -m distill_jax.train --config experiments/diffusion/dmd2.py[:data=digits,steps=4]
  --workdir runs/dmd2
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.dmd2",
    divergence="reverse_kl",  # a key of losses/f_divergence.py; others are f-distill
    sigmas=(20.0,),  # the student's steps
    guidance=1.0,
    adversarial=3e-3,  # weight of the GAN in the generator's loss
    discriminator=1e-2,  # and in the fake score's
    ratio=5,  # moves of the fake score for each of the generator
    cadence="every",
  )
  config = common.base(arg, method, divergence="reverse_kl", steps=1)
  common.two_players(config)
  config.method.divergence = config.arg.divergence
  config.noise.name = "karras"
  first = config.noise.sigma_max
  config.method.sigmas = (first,) if config.arg.steps == 1 else (first, 4.0, 1.0, 0.3)
  config.sampler.sigmas = config.method.sigmas
  return common.smoke(config) if config.arg.smoke else config
