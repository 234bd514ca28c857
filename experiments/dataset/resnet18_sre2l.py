"""SRe2L recovery by a ResNet-18 at 224 x 224: 10 images of each of 1,000 classes on 16 v5e chips.

Paper: Yin, Xing, Shen, Squeeze, Recover and Relabel (arXiv:2306.13092), table 3.
Plan:  python -m distill_jax.plan --config experiments/dataset/resnet18_sre2l.py --topology v5e:4x4
Takes: planned only, never run: docs/scale.md has the plan. Weights are random until
  pretrained.teacher names a folder with those of a ResNet-18 (models/resnet.py). Labels are made
  afterwards: distill_jax/relabel.py.
"""

from distill_jax.models import resnet
from experiments.dataset import sre2l

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, images in [0, 1]


def get_config(arg=None):
  config = sre2l.get_config(arg)
  if config.arg.smoke:
    return config
  config.unlock()
  config.data.name, config.data.source = "nothing", ""  # the teacher has seen the data
  config.data.shape = (224, 224, 3)
  config.per_class = 10
  config.models.student.num_classes = 1000
  config.models.teacher = resnet.default_config()
  config.models.teacher.dtype = "bfloat16"
  config.method.block = 125  # of a chip's 625, five blocks one after the other
  config.method.at_once = 16
  config.method.flip = True
  config.method.relabel = False
  config.method.low = tuple((0 - m) / s for m, s in zip(MEAN, STD, strict=True))
  config.method.high = tuple((1 - m) / s for m, s in zip(MEAN, STD, strict=True))
  config.optim.lr = 0.25
  config.steps = 4000
  config.batch_size = 16
  config.evals = ()
  config.sharding.state = (("images", (("data", "fsdp"), None, None, None)),)
  return config.lock()
