"""Cross-entropy on the text alone, no teacher in the step: the baseline of the quickstart table.

Paper: the "student without distillation" row of distillation papers, for instance of
  arXiv:2306.13649.
Run:   python -m distill_jax.train --config experiments/llm/sft.py --workdir runs/sft
Takes: see docs/ledger.md, made from the quickstart table, of which this is a row.
"""

from experiments.llm import common


def get_config(arg=None):
  config = common.base(arg)
  config.method.name = "llm.sft"
  common.quickstart(config)
  return common.smoke(config) if config.arg.smoke else config
