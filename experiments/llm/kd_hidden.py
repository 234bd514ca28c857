"""Forward KL with hidden states and attention relations, from the stdlib teacher.

Paper: Jiao et al. 2019 (arXiv:1909.10351), eq. 8, and Wang et al. 2020 (arXiv:2012.15828), eq. 5.
Run:   python -m distill_jax.train --config experiments/llm/kd_hidden.py --workdir runs/kd_hidden
Takes: a minute or two on two CPU cores; no number is recorded yet.
"""

from experiments.llm import common


def get_config(arg=None):
  method = dict(
    name="llm.kd_hidden",
    hidden=0.1,  # weight of the hidden states' squared error
    relation=0.1,  # weight of the attention relations
    relation_heads=12,  # divides the width of all queries, keys and values of both models
  )
  config = common.base(arg, method)
  common.quickstart(config)
  if config.arg.smoke:
    config = common.smoke(config)
    config.method.relation_heads = 2
  return config
