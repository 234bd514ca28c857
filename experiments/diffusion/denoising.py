"""A diffusion model from data: what the distillations of this folder begin with.

Paper: Karras et al. 2022 (arXiv:2206.00364); no number of theirs on these data.
Run:   python -m distill_jax.train --config experiments/diffusion/denoising.py[:data=digits]
  --workdir runs/denoising
       python -m distill_jax.export --workdir runs/denoising --out my_denoiser
         --tree ema.constant_0.999 --dtype float32
Takes: see docs/diffusion.md.
"""

from experiments.diffusion import common


def get_config(arg=None):
  config = common.base(arg, dict(name="diffusion.denoising", weight="edm", label_drop=0.1))
  config.pretrained.teacher = config.pretrained.start = ""
  config.steps = 10_000
  config.eval_every = 5000
  config.sampler.name = "heun"
  config.sampler.steps = 18
  return common.smoke(config) if config.arg.smoke else config
