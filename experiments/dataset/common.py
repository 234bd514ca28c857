"""Keys of the dataset-distillation experiments."""

from ml_collections import ConfigDict

from distill_jax.config import ConfigError
from distill_jax.distilled import protocol
from distill_jax.models import convnet, perceptron, resnet, vit
from experiments import common

NO_FLIP = ("color", "crop", "cutout", "scale", "rotate")  # of siamese augmentation; for digits
ALL = ("color", "crop", "cutout", "flip", "scale", "rotate")


def base(arg=None, method=None, **defaults):
  """`data=digits`, the default: optdigits and a ConvNet-2 of width 32. `data=fashion`:
  Fashion-MNIST and ConvNet-3 of width 128, the published protocol. `ipc=N`: images per class.
  `others`: other architectures are trained on the set too. `robust`: LRS and ARS, which need
  networks trained on the whole set."""
  config = common.base(arg, method, data="digits", ipc=1, others=False, robust=False, **defaults)
  config.unit = "updates"
  config.batch_size = 8  # of nothing: methods draw what they need (data/image_set.py)
  config.steps = 300
  config.log_every = 50
  config.optim.name = "sgd"
  config.optim.schedule = "constant"
  config.optim.warmup = 0
  config.optim.b1 = 0.5  # momentum
  config.optim.clip_norm = 0.0

  config.per_class = config.arg.ipc  # synthetic images of each class
  config.start = "real"  # real | noise: distilled/synthetic.py
  config.real_per_class = 64  # real images of each class in a step
  config.augment = ()  # of both sides, while distilling: data/siamese.py
  config.parts = 1  # an image is trained on as parts x parts small ones
  config.label_kind = "hard"  # of labels that are learned: logits | regression

  config.data.name = "image_set"
  config.data.source = config.arg.data
  config.data.preprocess = "standardize"  # none | standardize | zca
  config.data.validation = 0  # training images of each class that choose a checkpoint
  config.models = ConfigDict(dict(student=convnet.default_config()))

  config.evals = ("distilled", "robust_scores") if config.arg.robust else ("distilled",)
  config.eval_samples = 10_000  # test images, or all if there are fewer
  config.protocol = protocol.default_config()
  config.others = ConfigDict()  # name -> a further architecture that is trained on the set
  match config.arg.data:
    case "digits":
      config.data.shape = (8, 8, 1)
      config.models.student.width = 32
      config.models.student.depth = 2
      config.protocol.epochs = 300
      config.protocol.augment = NO_FLIP
    case "fashion":
      config.data.shape = (28, 28, 1)
      config.real_per_class = 256
    case other:
      raise ConfigError(f"data={other!r}: digits or fashion.")
  if config.arg.others:
    config.others = other_networks(config.models.student, min(config.data.shape[:2]))
  return config


def other_networks(student, side):
  """Architectures that a set was not distilled with, for images of so many pixels a side."""
  models = dict(perceptron=perceptron, vit=vit, resnet=resnet)
  networks = ConfigDict({name: model.default_config() for name, model in models.items()})
  networks.resnet.stem = "small"
  if side < 16:
    networks.resnet.widths, networks.resnet.blocks = (32, 64), (1, 1)
  networks.vit.patch = side // 4 if side < 16 else side // 7
  for depth in (1, 2, 3, 4):
    if depth != student.depth and side >> depth > 0:
      networks[f"convnet_{depth}"] = ConfigDict(dict(student.to_dict(), depth=depth))
  for network in networks.values():
    network.num_classes = student.num_classes
  return networks


def finish(config):
  """The last line of an experiment: the end is measured, and smoke shrinks it."""
  if config.arg.smoke:
    config = common.smoke(config)
    config.models.student.width = 8
    config.real_per_class = 8
    config.protocol.epochs = 2
    config.protocol.seeds = 1
    config.eval_samples = 64
  else:
    config.eval_every = config.save_every = max(config.steps, 1)
  return config.lock()
