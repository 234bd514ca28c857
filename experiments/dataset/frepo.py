"""FRePo, ridge regression on the features of a pool of networks; labels are learned.

Paper: Zhou, Nezhadarya and Ba, Dataset Distillation using Neural Feature Regression
  (arXiv:2206.00719), table 1. The authors' optimiser, pool and batch; their networks are wider.
Run:   python -m distill_jax.train --config experiments/dataset/frepo.py[:data=fashion,ipc=10]
  --workdir runs/frepo
Takes: docs/datasets.md. Digits have larger rates than the authors', who take 500,000 steps.
"""

from experiments.dataset import common


def get_config(arg=None):
  method = dict(name="dataset.frepo", ridge=1e-6, network_lr=3e-4)
  config = common.base(arg, method)
  config.method.pool = 10  # networks
  config.method.most = 100  # updates of a network
  config.method.targets = 1024  # real images of a step
  config.label_kind = "regression"
  config.optim.name = "lamb"
  config.optim.lr = 3e-4
  config.optim.b1, config.optim.b2 = 0.9, 0.999
  config.steps = 500_000
  if config.arg.data == "digits":
    config.method.network_lr = 3e-3
    config.method.targets = 256
    config.optim.lr = 0.02
    config.steps = 500
  if config.arg.smoke:
    config.method.pool = 3
    config.method.targets = 32
  return common.finish(config)
