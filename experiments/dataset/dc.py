"""DC, gradient matching; `variant=dsa` with siamese augmentation.

Paper: Zhao, Mopuri, Bilen, Dataset Condensation with Gradient Matching (arXiv:2006.05929), table 1;
  Zhao and Bilen, Dataset Condensation with Differentiable Siamese Augmentation (arXiv:2102.08259).
Run:   python -m distill_jax.train
  --config experiments/dataset/dc.py[:variant=dsa,data=fashion,ipc=10] --workdir runs/dc
Takes: docs/datasets.md.
"""

from distill_jax.config import ConfigError
from experiments.dataset import common

LOOPS = {1: (1, 1), 10: (10, 50), 50: (50, 10)}  # the authors' outer and inner loops


def get_config(arg=None):
  config = common.base(arg, dict(name="dataset.dc", network_lr=0.01), variant="dc")
  ipc = config.per_class
  outer, inner = LOOPS[min(LOOPS, key=lambda n: abs(n - ipc))]
  config.method.outer = outer  # updates of the images, then a new network
  config.method.inner = inner  # epochs of training it after each of them
  config.optim.lr = 0.1
  config.start = "noise" if config.arg.variant == "dc" else "real"
  match config.arg.variant:
    case "dc":
      config.protocol.augment = ()
      config.protocol.epochs = 300
    case "dsa":
      config.augment = config.protocol.augment
    case other:
      raise ConfigError(f"variant={other!r}: dc or dsa.")
  config.steps = 200 if config.arg.data == "digits" else 1000 * outer
  return common.finish(config)
