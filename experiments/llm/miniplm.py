"""Cross-entropy on the half of the rows that the stdlib teacher models best, compared with the
student's own warm start as the small reference.

Paper: Gu et al. 2024 (arXiv:2410.17215): rows of 1024 tokens, half of them kept, a student from
  random weights; no number of theirs on this text.
Run:   python -m distill_jax.train --config experiments/llm/miniplm.py --workdir runs/miniplm
Takes: about 4 minutes on two busy CPU cores, half of it for the scores, at the first run; no number
  is recorded yet.
"""

from experiments.llm import common


def get_config(arg=None):
  config = common.base(arg)
  config.method.name = "llm.sft"
  config.data.name = "selection"
  common.quickstart(config)
  config = common.smoke(config) if config.arg.smoke else config
  with config.unlocked():
    config.pretrained.reference = config.pretrained.student
    config.models.reference = config.models.student.copy_and_resolve_references()
    config.data.candidates = 64 if config.arg.smoke else 3200  # rows that are scored; 0: all
    config.data.keep = 0.5  # share of them that is trained on
  if config.arg.smoke:
    config.evals = ("language",)
  return config
