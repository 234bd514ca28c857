"""INFER, compensators that all classes share, for three networks; static labels.

Paper: Zhang et al., Breaking Class Barriers: Efficient Dataset Distillation via Inter-Class Feature
  Compensator (arXiv:2408.06927).
Run:   python -m distill_jax.train
  --config experiments/dataset/infer.py[:data=fashion,ipc=10] --workdir runs/infer
Takes: docs/datasets.md. At one image per class three compensators are stored beside the images,
  more than other methods store.
"""

from experiments.dataset import common, sre2l


def get_config(arg=None):
  config = common.base(arg, dict(name="dataset.infer", **sre2l.teacher_keys()))
  config.optim.name, config.optim.lr, config.optim.schedule = "adam", 0.02, "cosine"
  config.optim.b2, config.optim.final = 0.9, 0.0
  config.label_kind = "logits"
  config.method.scores = (0.0, 0.0, 0.0)
  config.steps = 150 if config.arg.data == "digits" else 4000
  sre2l.teachers(config, sre2l.COMMITTEE)
  return sre2l.finish(config)
