"""Forward KL, or another divergence by argument, from the stdlib teacher to a student of a fifth.

Paper: Hinton et al. 2015 (arXiv:1503.02531): the objective; no number of theirs on this text.
Run:   python -m distill_jax.train --config experiments/llm/kd.py[:divergence=reverse_kl] --workdir
  runs/kd
Takes: see docs/ledger.md, made from the quickstart table, of which this is a row.
"""

from experiments.llm import common


def get_config(arg=None):
  config = common.base(arg, divergence="forward_kl")
  config.method.name = "llm.kd"
  config.divergence.kind.name = config.arg.divergence
  common.quickstart(config)
  return common.smoke(config) if config.arg.smoke else config
