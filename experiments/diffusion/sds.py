"""Score distillation of particles; `kind=vsd`, `esd`, `asd` have a network that follows them.

Paper: Poole et al. 2022 (arXiv:2209.14988), Wang et al. 2023 (arXiv:2305.16213), Wang et al. 2024
  (arXiv:2401.00909), Wei et al. 2023 (arXiv:2312.00739); no number of theirs on these data.
Run:   python -m distill_jax.train --config experiments/diffusion/sds.py[:data=digits,kind=vsd]
  --workdir runs/sds
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.sds",
    kind="sds",  # sds | vsd | esd | asd
    weight="sds",  # of losses.scores.noise_weight: sds | uniform | fantasia3d | ratio
    guidance=1.0,  # of the teacher; the papers' 100 (SDS) and 7.5, of text
    spread=1.0,  # of the first particles, in standard deviations of the data
    entropy=0.5,  # of esd: share of the score that knows no label
    label_drop=0.5,  # of esd
    gamma=0.5,  # of asd
    ratio=1,  # moves of the network that follows for each of the particles
    cadence="every",
  )
  config = common.base(arg, method, kind="sds")
  common.two_players(config)
  config.method.kind = config.arg.kind
  config.optim.lr = 1e-2  # in units of the data
  config.ema = ()
  config.sampler.name = "particles"
  config.batch_size = config.eval_samples = 1024 if config.arg.data == "mixture25" else 64
  if config.arg.kind == "asd":
    config.method.weight = "ratio"  # their code's
  if config.arg.smoke:
    config = common.smoke(config)
    config.eval_samples = config.batch_size
  return config
