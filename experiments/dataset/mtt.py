"""MTT, trajectory matching; `variant=tesla` in constant memory, `variant=ftd` with flat experts and
averaged images, `variant=datm` with soft labels and later epochs later, `variant=ast` with smooth
experts.

Paper: Cazenavette, Wang, Torralba, Efros, Zhu, Dataset Distillation by Matching Training
  Trajectories (arXiv:2203.11932), table 1; Cui, Wang, Si, Hsieh, Scaling Up Dataset Distillation to
  ImageNet-1K with Constant Memory (arXiv:2211.10586); Du et al., Minimizing the Accumulated
  Trajectory Error to Improve Dataset Distillation (arXiv:2211.11004); Guo et al., Towards Lossless
  Dataset Distillation via Difficulty-Aligned Trajectory Matching (arXiv:2310.05773).
Run:   python -m distill_jax.train
  --config experiments/dataset/mtt.py[:variant=datm,data=fashion,ipc=10] --workdir runs/mtt
  [--config.pretrained.experts=my_experts], of experiments/dataset/experts.py; else experts are
  trained before the first step, and again by a resumed run.
Takes: docs/datasets.md.
"""

from ml_collections import ConfigDict

from distill_jax.config import ConfigError
from distill_jax.distilled import experts
from experiments.dataset import common


def get_config(arg=None):
  method = dict(
    name="dataset.mtt",
    unroll="remat",  # full | remat | sqrt | tesla
    syn_steps=50,  # updates on synthetic images
    batch_syn=0,  # images of each of them; 0: all
    expert_epochs=2,  # of the expert, that they are to repeat
    min_start=0,  # start epochs are drawn from [min_start, max_start)
    max_start=5,
    first_max_start=1,  # max_start at step 0, if it grows
    growth=0,  # steps until it is max_start; 0: it is so from the beginning
    threshold=0.0,  # steps whose loss is above are skipped; 0: none
    lr=0.01,  # of the updates, to begin with
    lr_lr=1e-5,  # of that rate, as if it were learned itself
    soft_labels=False,  # learned, beginning at the mean logits of the experts that are right
    lr_labels=2.0,
    representative=False,  # images begin near the means of clusters
    momentum=0.0,  # of the updates on synthetic images
    between=False,  # the expert's epochs on the way are matched too
    perturb=0.0,  # length of the noise on the weights of convolutions, in their units; 0: none
    balanced=False,  # a smaller loss from early epochs, a larger one from late
    experts=experts.default_config(),  # where pretrained.experts is empty
  )
  config = common.base(arg, method, variant="mtt")
  given, ipc = config.method, config.per_class
  config.pretrained = ConfigDict(dict(experts=""))
  config.augment = config.protocol.augment
  config.protocol.learned_lr = True
  if config.arg.data == "digits":
    digits(config)
  else:
    fashion(config)
  match config.arg.variant:
    case "mtt":
      pass
    case "tesla":
      given.unroll = "tesla"
    case "ftd":
      experts.ftd(given.experts)
      config.ema = (("constant", 0.95 if config.arg.data == "digits" else 0.9995),)
    case "datm":
      experts.ftd(given.experts)
      given.soft_labels, config.label_kind = True, "logits"
      given.growth = config.steps // 4
      given.threshold = 1.1 if ipc == 1 else 0.0
      given.lr_labels = 5.0 if ipc == 1 else 2.0
    case "ast":
      experts.smooth(given.experts)
      given.representative = given.between = given.balanced = True
      given.perturb, given.momentum = 1.0, 0.9
      if config.arg.data == "digits":
        given.lr, given.lr_lr = 0.005, 1e-6  # a tenth of the rate, for momentum
    case other:
      raise ConfigError(f"variant={other!r}: mtt, tesla, ftd, datm or ast.")
  if config.arg.smoke:
    given.experts.count, given.experts.epochs, given.experts.batch_size = 2, 2, 256
    given.syn_steps, given.max_start, given.expert_epochs = 3, 1, 1
  return common.finish(config)


def digits(config):
  """A few experts at a higher rate: 5 epochs of 23 updates know nine digits in ten."""
  given = config.method
  given.experts.update(dict(count=6, epochs=6, batch_size=64, lr=0.05))
  given.syn_steps, given.lr, given.lr_lr = 20, 0.05, 1e-4
  given.max_start, given.expert_epochs = 4, 2
  config.optim.lr = 10.0
  config.steps = 100


def fashion(config):
  """The authors' values for CIFAR-10, of FTD's table where it has others."""
  given, ipc = config.method, config.per_class
  given.syn_steps = 50 if ipc == 1 else 30
  given.max_start = 2 if ipc == 1 else 20 if ipc <= 10 else 40
  given.batch_syn = 0 if ipc <= 10 else 500
  config.optim.lr = 100.0 if ipc <= 10 else 1000.0
  config.steps = 5000
