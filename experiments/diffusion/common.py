"""Keys of the diffusion experiments."""

from ml_collections import ConfigDict

from distill_jax.config import ConfigError
from distill_jax.diffusion import network
from experiments import common

STARTS = dict(
  mixture25="distill_jax/assets/mixture25_denoiser", digits="distill_jax/assets/digits_denoiser"
)
FEATURES = dict(digits="distill_jax/assets/digits_classifier")

# (regex, partition), the partition counted from an array's last axis: see mesh.shardings. The axis
# `tensor` is left unused: where a batch is split over (data, fsdp), XLA (jaxlib 0.10.2, CPU)
# computes wrong gradients of two matrices in a row that are both split over fsdp and tensor.
SHARDING = (("kernel$", ("fsdp", None)),)


def base(arg=None, method=None, **defaults):
  """With `data=mixture25`, the default, the teacher is the exact denoiser of 25 modes in the plane,
  and students begin as a perceptron that was trained on them; with `data=digits` (optdigits) and
  `data=fashion` teacher and student are a small U-Net."""
  config = common.base(arg, method, data="mixture25", **defaults)
  config.unit = "images"
  config.batch_size = 256
  config.steps = 4000
  config.eval_every = 4000
  config.save_every = 1000
  config.log_every = 100
  config.optim.lr = 1e-3
  config.optim.warmup = 100
  config.optim.b2 = 0.999
  config.ema = (("constant", 0.999),)
  config.evals = ("samples",)
  config.data.name = "points"  # points | images
  config.data.shape = (2,)
  config.data.distribution = "mixture25"  # of points
  config.data.source = ""  # of images

  config.models = ConfigDict()
  for name in ("teacher", "student", "fake"):
    config.models[name] = network.default_config()
    config.models[name].sigma_data = 2.01**0.5
    config.models[name].num_classes = 5
    config.models[name].conditions = ("label",)
  config.pretrained = ConfigDict(dict(teacher="", start=""))  # students begin at start, or teacher

  config.noise = ConfigDict()  # levels that networks are trained at: diffusion/times.py
  config.noise.name = "lognormal"
  config.noise.mean = -0.4
  config.noise.std = 1.4
  config.noise.low = 0.02
  config.noise.high = 0.98
  config.noise.sigma_min = 0.01
  config.noise.sigma_max = 20.0

  config.sampler = ConfigDict()  # how samples are made of the student: evals/samples.py
  config.sampler.name = "few_step"  # few_step | heun | flow_map
  config.sampler.sigmas = (20.0,)  # noise levels of few_step, one for each evaluation
  config.sampler.steps = 18  # of heun, flow_map
  config.sampler.guidance = 1.0
  config.eval_samples = 4096
  config.features = ""  # model folder of a classifier whose features compare images
  config.fake_optim = config.optim.copy_and_resolve_references()  # of fake scores and critics
  config.sharding.state = SHARDING
  config.sharding.frozen = SHARDING
  match config.arg.data:
    case "mixture25":
      config.models.teacher.name = "analytic"
      config.pretrained.start = STARTS["mixture25"]
    case "digits" | "fashion":
      _images(config)
    case other:
      raise ConfigError(f"data={other!r}: mixture25, digits or fashion.")
  return config.lock()


def _images(config):
  config.data.name = "images"
  config.data.source = config.arg.data
  config.data.shape = (8, 8, 1) if config.arg.data == "digits" else (28, 28, 1)
  config.batch_size = 64
  config.eval_samples = 2048
  for model in config.models.values():
    model.name = "unet"
    model.sigma_data = 0.5
    model.width = 32
    model.num_classes = 10
  config.noise.mean = -1.2
  config.noise.std = 1.2
  config.noise.sigma_max = 80.0
  config.sampler.sigmas = (80.0,)
  config.pretrained.teacher = STARTS.get(config.arg.data, "")
  config.features = FEATURES.get(config.arg.data, "")
  config.inception = ""  # .safetensors of Inception's weights, for inception_fid: docs/diffusion.md


def two_players(config):
  """Rates of a generator and of a fake score that follows it; the first moments are not averaged,
  as in all papers of score distillation."""
  config.optim.lr, config.fake_optim.lr = 2e-4, 1e-3
  config.optim.b1 = config.fake_optim.b1 = 0.0
  config.optim.clip_norm = config.fake_optim.clip_norm = 10.0


def smoke(config):
  """A perceptron of a thousand parameters, from random weights."""
  config = common.smoke(config)
  config.fake_optim.warmup = 1
  # at rounding size a gradient's sign is chance: Adam must not blow it up to a whole step
  config.optim.eps = config.fake_optim.eps = 1e-2
  if "ratio" in config.method:
    config.method.ratio = 1
  config.batch_size = 16
  config.eval_samples = 64
  config.pretrained.start = config.pretrained.teacher = ""
  for model in config.models.values():
    model.width = 16
    model.depth = 2
  return config
