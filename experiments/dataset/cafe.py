"""CAFE, feature matching in every layer; `variant=dsa` with siamese augmentation.

Paper: Wang et al., CAFE: Learning to Condense Dataset by Aligning Features (arXiv:2203.01531),
  table 1.
Run:   python -m distill_jax.train
  --config experiments/dataset/cafe.py[:variant=dsa,data=fashion,ipc=10] --workdir runs/cafe
Takes: docs/datasets.md.
"""

from distill_jax.config import ConfigError
from experiments.dataset import common


def get_config(arg=None):
  method = dict(
    name="dataset.cafe",
    early=0.1,  # weight of all blocks but the last
    weight=0.01,  # of the discrimination loss
    network_lr=0.01,
    inner=10,  # updates of the network after each of the images
    watch=10,  # accuracies that
    still=0.04,  # are closer than this: a new network
  )
  config = common.base(arg, method, variant="dsa")
  config.optim.lr = 0.1
  match config.arg.variant:
    case "cafe":
      config.start = "noise"
      config.protocol.augment = ()
      config.protocol.epochs = 300
    case "dsa":
      config.augment = config.protocol.augment
    case other:
      raise ConfigError(f"variant={other!r}: cafe or dsa.")
  config.steps = 300 if config.arg.data == "digits" else 20_000
  return common.finish(config)
