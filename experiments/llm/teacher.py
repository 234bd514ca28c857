"""The teacher that ships with the project: 4 layers of width 192 on the standard library's source.

Run:   make teacher
Takes: see distill_jax/assets/stdlib_teacher/README.md, which also has the number it gave.
"""

from experiments.llm import common


def get_config(arg=None):
  config = common.base(arg)
  config.method.name = "llm.sft"
  config.pretrained.teacher = config.pretrained.student = ""
  config.models.student = config.models.teacher.copy_and_resolve_references()
  config.steps = 3600
  config.batch_size = 8
  config.optim.lr = 2e-3
  config.optim.warmup = 100
  config.optim.weight_decay = 0.1
  config.optim.final = 0.02
  config.eval_batches = 16
  config.eval_every = config.save_every = 300
  return common.smoke(config) if config.arg.smoke else config
