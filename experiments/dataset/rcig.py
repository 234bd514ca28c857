"""RCIG, implicit gradients through a linearised network; images, labels and a temperature are
learned.

Paper: Loo, Hasani, Lechner and Rus, Dataset Distillation with Convexified Implicit Gradients
  (arXiv:2302.06755), table 1. The rates, the pool and the steps are those of the authors' file for
  a network of depth 3, Adam is in place of AdaBelief, and the rates they tune are fixed.
Run:   python -m distill_jax.train --config experiments/dataset/rcig.py[:data=fashion,ipc=10]
  --workdir runs/rcig
Takes: docs/datasets.md.
"""

from experiments.dataset import common


def get_config(arg=None):
  method = dict(name="dataset.rcig", network_lr=5e-5, inner_lr=1e-3, hessian_lr=1e-2)
  config = common.base(arg, method)
  config.method.ridge = 5e-4  # times the number of synthetic images
  config.method.temperature_rate = 10.0  # of the log-temperature, in optim.lr
  config.method.inner_steps = 20
  config.method.hessian_steps = 20
  config.method.pool = 30  # networks
  config.method.pool_steps = 15  # updates of a network after a step, at most
  config.method.most = 100  # updates of a network
  config.method.targets = 1024  # real images of a step
  config.label_kind = "regression"
  config.optim.name = "adam"
  config.optim.lr = 0.003
  config.optim.b1, config.optim.b2 = 0.9, 0.999
  config.steps = 10_000
  if config.arg.data == "digits":
    config.method.network_lr = 1e-3
    config.method.pool = 10
    config.method.targets = 256
    config.optim.lr = 0.02
    config.steps = 200
  if config.arg.smoke:
    config.method.pool = config.method.pool_steps = 3
    config.method.inner_steps = config.method.hessian_steps = 3
    config.method.targets = 32
  return common.finish(config)
