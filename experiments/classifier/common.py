"""Keys of the classifier experiments."""

from ml_collections import ConfigDict

from distill_jax.config import ConfigError
from distill_jax.models import convnet
from experiments import common


def base(arg=None, method=None, **defaults):
  """A small ConvNet on optdigits, the default; with `data=fashion` ConvNet-3 on Fashion-MNIST."""
  config = common.base(arg, method, data="digits", **defaults)
  config.unit = "images"
  config.batch_size = 64
  config.steps = 2000
  config.eval_every = 500
  config.save_every = 500
  config.log_every = 100
  config.optim.lr = 2e-3
  config.optim.warmup = 100
  config.optim.b2 = 0.999
  config.optim.weight_decay = 0.05
  config.optim.final = 0.0
  config.ema = (("constant", 0.99),)
  config.evals = ("classification",)
  config.eval_samples = 10_000  # held-out images, or all if there are fewer
  config.data.name = "images"
  config.data.source = config.arg.data
  config.models = ConfigDict(dict(student=convnet.default_config()))
  config.pretrained.student = ""
  match config.arg.data:
    case "digits":
      config.data.shape = (8, 8, 1)
      config.models.student.width = 32
      config.models.student.depth = 2
    case "fashion":
      config.data.shape = (28, 28, 1)
      config.steps = 10_000
    case other:
      raise ConfigError(f"data={other!r}: digits or fashion.")
  return config.lock()


def smoke(config):
  """A network of two thousand parameters."""
  config = common.smoke(config)
  # a bias in front of a norm has a gradient of rounding size: Adam must not make a step of it
  config.optim.eps = 1e-2
  config.batch_size = 16
  config.eval_samples = 64
  config.models.student.width = 8
  return config
