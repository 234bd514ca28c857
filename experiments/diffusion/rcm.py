"""rCM: continuous-time consistency, regularised by distribution matching, to one step.

Paper: Zheng et al. 2025 (arXiv:2510.08431); no number of theirs on these data.
Run:   python -m distill_jax.train --config experiments/diffusion/rcm.py[:steps=2]
  --workdir runs/rcm
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.rcm",
    sigmas=(20.0,),  # the student's steps
    score_weight=1.0,  # of distribution matching; 0.01 per number in the authors' code
    tangent_warmup=300,  # steps
    c=0.1,  # of the tangent's norm
    prior_weight=False,  # 1 / sigma
    noise=None,  # levels of the consistency loss, the others being of config.noise
    ratio=2,  # moves of the fake score for each of the student; 5 in the authors' code
    cadence="every",
  )
  config = common.base(arg, method, steps=1)
  common.two_players(config)
  config.optim.lr, config.optim.b1 = 1e-3, 0.9  # those of consistency, not of score distillation
  with config.unlocked():
    config.method.noise = config.noise.copy_and_resolve_references()
  config.noise.name = "karras"
  first = config.noise.sigma_max
  config.method.sigmas = (first,) if config.arg.steps == 1 else (first, 1.0)
  config.sampler.sigmas = config.method.sigmas
  if config.arg.data == "mixture25":
    config.method.noise.mean, config.method.noise.std = 0.5, 1.6
  return common.smoke(config) if config.arg.smoke else config
