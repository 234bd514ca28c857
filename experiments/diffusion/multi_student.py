"""One-step students for a part of the classes each, by DMD2; `students=5` of them.

Paper: Song et al. 2024 (arXiv:2410.23274); no number of theirs on these data.
Run:   python -m distill_jax.train --config experiments/diffusion/multi_student.py[:students=2]
  --workdir runs/multi_student
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.multi_student",
    divergence="reverse_kl",
    sigmas=(20.0,),  # the students' steps
    guidance=1.0,
    adversarial=3e-3,  # weight of the GAN in the generators' loss
    discriminator=1e-2,  # and in the fake score's
    ratio=1,  # moves of the fake score for each of the generators
    cadence="every",
  )
  config = common.base(arg, method, students=5)
  common.two_players(config)
  config.noise.name = "karras"
  config.method.sigmas = config.sampler.sigmas
  with config.unlocked():
    config.models.student.copied = config.models.student.name
    config.models.student.copies = config.arg.students
  config.models.student.name = "multi"
  return common.smoke(config) if config.arg.smoke else config
