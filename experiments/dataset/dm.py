"""DM, distribution matching in the features of random networks.

Paper: Zhao and Bilen, Dataset Condensation with Distribution Matching (arXiv:2110.04181), table 1.
Run:   python -m distill_jax.train --config experiments/dataset/dm.py[:data=fashion,ipc=10]
  --workdir runs/dm
Takes: docs/datasets.md.
"""

from experiments.dataset import common


def get_config(arg=None):
  config = common.base(arg, dict(name="dataset.dm"))
  config.optim.lr = 1.0  # 10 from 100 images per class on
  config.augment = config.protocol.augment
  config.steps = 300 if config.arg.data == "digits" else 20_000
  return common.finish(config)
