"""Sequence-level distillation: the stdlib teacher continues the prompts, the student learns that.

Paper: Kim, Rush 2016 (arXiv:1606.07947), section 3.2, with samples in place of beam search.
Run:   python -m distill_jax.train --config experiments/llm/seqkd.py --workdir runs/seqkd
Takes: a minute or two on two CPU cores; no number is recorded yet.
"""

from experiments.llm import common


def get_config(arg=None):
  config = common.base(arg, dict(name="llm.seqkd"))
  common.quickstart(config)
  if config.arg.smoke:
    config = common.smoke(config)
    config.method.temperature = 0.0  # what a random teacher samples can't be learnt
  return config
