"""SiD of a DiT-XL/2 teacher on latents of 32 x 32 x 4, 16 v5e chips: 675M parameters, three times.

Paper: Zhou et al. 2024 (arXiv:2404.04057); shapes: Peebles and Xie 2023 (arXiv:2212.09748).
Plan:  python -m distill_jax.plan --config experiments/diffusion/dit_xl_sid.py --topology v5e:4x4
Takes: planned only, never run: docs/scale.md has the plan. Weights are random until
  pretrained.teacher names a model folder.
"""

from experiments.diffusion import sid


def get_config(arg=None):
  config = sid.get_config(arg)
  config.data.name = "images"
  if config.arg.smoke:
    config.data.shape, config.data.source = (8, 8, 1), "digits"
    sizes = dict(width=16, depth=2, heads=2)
  else:
    config.data.shape, config.data.source = (32, 32, 4), "tfds:latents"  # your own, float images
    config.batch_size = 256
    config.steps = 100_000
    sizes = dict(width=1152, depth=28, heads=16)
  config.pretrained.start = config.pretrained.teacher = ""
  for model in config.models.values():
    model.name, model.patch, model.num_classes = "dit", 2, 1000
    model.sigma_data = 0.5
    model.update(sizes)
    model.dtype = "float32" if config.arg.smoke else "bfloat16"
  config.noise.sigma_max = 80.0
  config.ema = (("half_life", 2000),)
  config.optim.lr = config.fake_optim.lr = 1e-5
  config.mesh.data, config.mesh.fsdp = 1, -1
  return config
