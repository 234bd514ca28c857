"""Real images chosen by `how=`: random, herding, k_center, k_means, el2n, grand or forgetting.

Paper: none; the baselines of Zhao, Mopuri, Bilen, Dataset Condensation with Gradient Matching
  (arXiv:2006.05929), table 1, and scores of training.
Run:   python -m distill_jax.train --config experiments/dataset/selection.py[:how=herding,ipc=10]
  --workdir runs/herding
Takes: docs/datasets.md.
"""

from experiments.dataset import common


def get_config(arg=None):
  method = dict(
    name="dataset.selection",
    how="random",
    features="network",  # of herding, k_center and k_means: network | pixels
    keep="hard",  # of the scores: hard | easy
    networks=10,  # whose scores are averaged
    epochs=10,  # of training each
    batch_size=64,
    network_lr=0.01,
  )
  config = common.base(arg, method, how="random", keep="hard", features="network")
  config.method.how = config.arg.how
  config.method.keep = config.arg.keep
  config.method.features = config.arg.features
  config.steps = 0  # all is done in init
  if config.arg.smoke:
    config.method.networks = 1
    config.method.epochs = 1
  return common.finish(config)
