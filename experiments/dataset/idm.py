"""IDM, improved distribution matching.

Paper: Zhao, Li, Qin, Yu, Improved Distribution Matching for Dataset Condensation
  (arXiv:2307.09742), table 1.
Run:   python -m distill_jax.train --config experiments/dataset/idm.py[:data=fashion,ipc=10]
  --workdir runs/idm
Takes: docs/datasets.md.
"""

from experiments.dataset import common


def get_config(arg=None):
  method = dict(
    name="dataset.idm",
    weight=0.5,  # of the cross-entropy; 0.1 from 50 images per class on
    queue=100,  # networks
    interval=30,  # steps between two new ones; 5 at 1 image per class
    trained=2,  # networks in a step
    updates=10,  # of each of them
    batch_size=256,  # of their training
    network_lr=0.01,
  )
  config = common.base(arg, method)
  config.parts = 2
  config.augment = config.protocol.augment
  config.optim.lr = 0.2
  config.steps = 20_000
  if config.per_class == 1:
    config.method.interval = 5
  if config.per_class >= 50:
    config.method.weight = 0.1
  if config.arg.data == "digits":
    config.steps = 300
    config.method.queue = 10
    config.method.trained = 1
    config.method.updates = 2
    config.method.batch_size = 64
  if config.arg.smoke:
    config.method.queue = 3
    config.method.updates = 2
    config.method.batch_size = 16
  return common.finish(config)
