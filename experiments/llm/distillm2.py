"""DistiLLM-2 from the stdlib teacher: one skewed KL on its text, another on the student's own.

Paper: Ko et al. 2025 (arXiv:2503.07067), with both schedules on.
Run:   python -m distill_jax.train --config experiments/llm/distillm2.py --workdir runs/distillm2
Takes: two minutes for 100 steps of 8 rows on two CPU cores (docs/ledger.md).
"""

from experiments.llm import common


def get_config(arg=None):
  config = common.base(arg, dict(name="llm.distillm2"))
  config.unit = "pairs"  # of a text of the teacher and one of the student
  common.quickstart(config)
  return common.smoke(config) if config.arg.smoke else config
