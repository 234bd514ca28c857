"""On-policy distillation (GKD) from the stdlib teacher: half of the batches are continued by the
student itself.

Paper: Agarwal et al. 2023 (arXiv:2306.13649), with lambda 0.5 and beta 0.5.
Run:   python -m distill_jax.train --config experiments/llm/gkd.py --workdir runs/gkd
Takes: see docs/ledger.md, made from the quickstart table, of which this is a row.
"""

from experiments.llm import common


def get_config(arg=None):
  config = common.base(arg)
  config.method.name = "llm.gkd"
  config.method.on_policy = 0.5
  config.divergence.kind.name = "generalized_js"
  common.quickstart(config)
  return common.smoke(config) if config.arg.smoke else config
