"""One step by the MMD of random embeddings; `real=teacher` compares with the teacher's samples.

Paper: Gretton et al. 2012, Zhao and Bilen 2021 (arXiv:2110.04181); neither distils a diffusion
  model.
Run:   python -m distill_jax.train --config experiments/diffusion/mmd.py[:data=digits,real=teacher]
  --workdir runs/mmd
Takes: see docs/ledger.md, made from the tables of which this is a row.
"""

from experiments.diffusion import common


def get_config(arg=None):
  method = dict(
    name="diffusion.mmd",
    networks=2,  # random ones, new at every step
    bandwidths=(0.1, 0.3, 1.0),
    teacher_steps=0,  # Heun steps of the teacher's samples; 0: data
  )
  config = common.base(arg, method, real="data")
  config.models.fake.width = 16  # of the embeddings, which are compared pair by pair
  config.batch_size = 128
  if config.arg.real == "teacher":
    config.method.teacher_steps = 18
  return common.smoke(config) if config.arg.smoke else config
