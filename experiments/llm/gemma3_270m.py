"""Gemma 3 270M distilled into itself with fewer layers, on the Python standard library's source.

Paper: Muralidharan et al. 2024 (arXiv:2407.14679): depth pruning, then logit distillation; no
  number of theirs on this model.
Run:   make gemma   (fetches the teacher, 253 MB under the Gemma licence, and cuts the student)
       python -m distill_jax.train --config experiments/llm/gemma3_270m.py[:divergence=NAME]
         --workdir runs/gemma
Takes: 23 to 34 s a step on two busy CPU cores, and 10 GB. In 20 steps
  language/teacher_kl from 2.36 to 0.90, bits_per_byte from 2.00 to 1.34, top1 from 0.31 to 0.59.
"""

from experiments.llm import common

CACHE = "~/.cache/distill_jax"
GEMMA = f"{CACHE}/gemma3-270m-q4_k_m.gguf"


def get_config(arg=None):
  config = common.base(
    arg, layers=14, divergence="forward_kl"
  )  # of 18, as in `make gemma LAYERS=14`
  config.method.name = "llm.kd"
  config.divergence.kind.name = config.arg.divergence
  config.pretrained.teacher = config.data.tokenizer = GEMMA
  config.pretrained.student = f"{CACHE}/gemma3-270m-{config.arg.layers}-layers"
  config.steps = 36
  config.batch_size = 8
  config.data.seq_len = 128
  config.divergence.chunk = 256  # logits of 256 tokens and 262,144 ids: 268 MB
  config.optim.lr = 2e-4
  config.optim.warmup = 5
  config.eval_every = 18
  config.eval_batches = 2
  config.save_every = 36
  config.log_every = 5
  return common.smoke(config) if config.arg.smoke else config
