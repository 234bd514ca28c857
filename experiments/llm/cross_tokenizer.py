"""From the stdlib teacher, with its 2048 byte pairs, to a student that reads bytes.

Paper: Minixhofer et al. 2025 (arXiv:2503.20083): subword to byte-level transfer, with tau 100,
  boundaries and the threshold 0.1 of the authors' code; no number of theirs on this text. uld and
  hybrid_uld by argument: Boizard et al. 2024 (arXiv:2402.12030), with their weight 1.5.
Run:   python -m distill_jax.train --config experiments/llm/cross_tokenizer.py[:loss=uld] --workdir
  runs/cross_tokenizer
Takes: about 4 minutes on two busy CPU cores; no number is recorded yet.
"""

from experiments.llm import common


def get_config(arg=None):
  config = common.base(
    arg,
    method=dict(
      name="llm.cross_tokenizer",
      loss="alm",  # alm | uld | hybrid_uld
      sft=1.0,  # weight of the cross-entropy of the student's tokens
      weight=100.0,  # of the chunks, each divided by the number of the student's tokens
      function="binary_cross_entropy",  # of losses/alm.py
      tau=100.0,  # its temperature
      boundary=True,  # a chunk is complete only when a new word follows
      threshold=0.1,  # below it a chunk is joined with the next; 0: never
    ),
    loss="alm",
  )
  config.method.loss = config.arg.loss
  config.method.weight = 100.0 if config.arg.loss == "alm" else 1.5
  config.data.name = "two_tokenizers"
  config.data.tokenizer = "bytes"
  config.data.teacher_tokenizer = common.TEACHER
  config.data.seq_len = 384
  common.quickstart(config)
  config.pretrained.student = ""
  config.models.student.vocab_size = 264
  config.evals = ("language",)
  if config.arg.smoke:
    config = common.smoke(config)
    config.data.seq_len = 48
    config.data.teacher_seq_len = 16
    config.models.teacher.vocab_size = 2048
  return config
