"""Preference distillation from the stdlib teacher: a function's own body against another's.

Paper: Rafailov et al. 2023 (arXiv:2305.18290), with the teacher as reference and means over tokens,
  as the code of DistiLLM-2 (arXiv:2503.07067) does; by argument DCKD (Gao et al. 2025,
  arXiv:2502.17927), REDI (Xu et al. 2025, arXiv:2505.24850, with its weights 1 and 0.8) and others
  of losses/preference.py. No number of theirs on this text.
Run:   python -m distill_jax.train --config
  experiments/llm/preference.py[:loss=dckd,reference=student] --workdir runs/preference
  [--config.data.source=FILE.jsonl]
Takes: about 5 minutes on two busy CPU cores; no number is recorded yet.
"""

from experiments.llm import common


def get_config(arg=None):
  config = common.base(
    arg,
    method=dict(
      name="llm.preference",
      loss="dpo",  # dckd | redi | dpo, hinge, ipo ... of losses/preference.py
      reference="teacher",  # teacher | student | none
      beta=0.1,  # of dpo and its kin
      average=False,  # log-probabilities of answers are means over tokens, not sums
      sft=1.0,  # weight of the chosen answer's cross-entropy, a mean over its tokens
      sft_steps=0,  # of redi, before the rejected answers count
      rejected_weight=0.8,  # of redi
    ),
    loss="dpo",
    reference="teacher",
  )
  config.method.loss = config.arg.loss
  config.method.reference = config.arg.reference
  config.method.average = config.arg.reference == "teacher"
  config.method.sft = 0.0 if config.arg.loss == "redi" else 1.0
  config.unit = "pairs"
  config.data.name = "preferences"
  common.quickstart(config)
  config.batch_size = 8
  config.optim.lr = 1e-3
  config.evals = ("language",)
  if config.arg.smoke:
    config = common.smoke(config)
    config.data.seq_len = 96  # bytes, more than most prompts have
  return config
