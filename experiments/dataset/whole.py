"""The whole real training set, judged as a distilled one is: what can be reached.

Paper: none; the row "whole dataset" of Zhao, Mopuri, Bilen, Dataset Condensation with Gradient
  Matching (arXiv:2006.05929), table 1.
Run:   python -m distill_jax.train --config experiments/dataset/whole.py[:data=fashion]
  --workdir runs/whole
Takes: docs/datasets.md.
"""

from experiments.dataset import common


def get_config(arg=None):
  config = common.base(arg, dict(name="dataset.whole"))
  config.steps = 0  # all is done in init
  if config.arg.data == "fashion":
    config.protocol.most_steps = 25_000  # 106 epochs of 60,000 images; of few images 1000 are less
  return common.finish(config)
