"""Cross-entropy on the text alone, no teacher in the step: the baseline of the quickstart table.

Paper: Kim, Rush 2016 (arXiv:1606.07947), eq. 1, the baseline that distillation has to beat.
Run:   python -m distill_jax.train --config experiments/llm/sft.py --workdir runs/sft
Takes: see docs/ledger.md, made from the quickstart table, of which this is a row.
"""

from experiments.llm import common


def get_config(arg=None):
  config = common.base(arg)
  config.method.name = "llm.sft"
  common.quickstart(config)
  return common.smoke(config) if config.arg.smoke else config
