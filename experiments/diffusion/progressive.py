"""Progressive distillation from 64 steps to one, or to `steps=4`; `schedule=cosine`; `guided=true`
after guidance.py.

Paper: Salimans and Ho 2022 (arXiv:2202.00512), Meng et al. 2022 (arXiv:2210.03142); no number of
  theirs on these data.
Run:   python -m distill_jax.train --config experiments/diffusion/progressive.py[:steps=4]
  --workdir runs/progressive
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

import math

from ml_collections import ConfigDict

from distill_jax.diffusion.schedules import karras_sigma
from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.progressive",
    first=64,  # steps of the student in the first stage; 8192 in the paper
    last=1,  # and in the last
    schedule="karras",  # karras | cosine: the paper's
    weight="truncated_snr",  # constant | snr | truncated_snr | snr_plus_one
    guidance=ConfigDict(dict(low=1.0, high=4.0)),  # of a student with the condition
  )
  config = common.base(arg, method, steps=1, schedule="karras", guided=False)
  config.method.last, config.method.schedule = config.arg.steps, config.arg.schedule
  config.ema = ()
  config.optim.schedule, config.optim.final = "linear", 0.0  # within each stage
  if config.arg.guided:
    config.models.student.conditions = ("label", "guidance")
  config.sampler.name = "euler"
  config.sampler.sigmas = _levels(config.noise, config.arg.schedule, config.arg.steps)
  if config.arg.smoke:
    config.method.first = config.method.last
  return common.smoke(config) if config.arg.smoke else config


def _levels(noise, schedule, n):
  """The levels that the n steps of the last stage start from."""
  low, high = noise.sigma_min, noise.sigma_max
  if schedule == "karras":
    return tuple(karras_sigma(i / n, low, high) for i in range(n))
  angles = math.atan(low), math.atan(high)
  return tuple(math.tan(angles[1] + i / n * (angles[0] - angles[1])) for i in range(n))
