"""Networks trained on a set in a folder: `--config.method.set=my_set`, ours or imported; by default
ten digits of dm.py.

Paper: none; the protocol of Zhao, Mopuri, Bilen, Dataset Condensation with Gradient Matching
  (arXiv:2006.05929), and those after it.
Run:   python -m distill_jax.train --config experiments/dataset/judge.py[:data=fashion,others]
  --workdir runs/judge --config.method.set=my_set [--config.method.views=my_labels]
Takes: docs/datasets.md.
"""

from experiments.dataset import common


def get_config(arg=None):
  method = dict(
    name="dataset.judge",
    set="distill_jax/assets/digits_dm",  # a folder of distilled/artifact.py
    views="",  # a folder of distill_jax/relabel.py: labels of augmented images; "": the set's own
  )
  config = common.base(arg, method)
  if config.arg.data != "digits":
    config.method.set = ""
  config.protocol.learned_lr = True
  config.steps = 0  # all is done in init
  return common.finish(config)
