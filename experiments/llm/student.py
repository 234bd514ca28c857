"""The warm start of the quickstart's students: 2 layers of width 96, on the teacher's own text.

Run:   make teacher   (trains the teacher and this student, and exports both)
Takes: see distill_jax/assets/stdlib_student/README.md, which also has the number it gave.
"""

from experiments.llm import common


def get_config(arg=None):
  config = common.base(arg)
  config.method.name = "llm.sft"
  config.pretrained.teacher = config.pretrained.student = ""
  config.steps = 1000
  config.batch_size = 8
  config.optim.lr = 3e-3
  config.optim.warmup = 50
  config.optim.final = 0.1
  config.eval_batches = 16
  config.eval_every = config.save_every = 250
  return common.smoke(config) if config.arg.smoke else config
