"""Forward KL on completions alone: the teacher's next tokens where the body of a function is
written, given its signature and docstring; several functions in a row, each by itself.

Paper: Hinton et al. 2015 (arXiv:1503.02531): the objective; no number of theirs on this text.
Run:   python -m distill_jax.train --config experiments/llm/kd_completions.py --workdir
  runs/kd_completions [--config.data.source=FILE.jsonl]
Takes: about 2 minutes on two busy CPU cores; no number is recorded yet.
"""

from experiments.llm import common


def get_config(arg=None):
  config = common.base(arg)
  config.method.name = "llm.kd"
  config.data.name = "completions"
  common.quickstart(config)
  config.evals = ("language",)
  config.eval_batches = 2
  if config.arg.smoke:
    config = common.smoke(config)
    config.data.seq_len = 96  # bytes, more than most prompts have
  return config
