"""A random part of the real images with a teacher's soft labels.

Paper: Ben-Baruch et al., Distilling the Knowledge in Data Pruning (arXiv:2403.07854), the random
  selection.
Run:   python -m distill_jax.train --config experiments/dataset/pruning.py[:ipc=10]
  --workdir runs/pruning [--config.pretrained.teacher=my_classifier]
Takes: docs/datasets.md.
"""

from ml_collections import ConfigDict

from experiments.dataset import common


def get_config(arg=None):
  method = dict(name="dataset.pruning", epochs=60, temperature=1.0)  # epochs: of the teacher
  config = common.base(arg, method)
  config.models.teacher = ConfigDict(config.models.student.to_dict())
  config.pretrained.teacher = ""  # trained by the run itself
  config.label_kind = "logits"
  config.steps = 0  # all is done in init
  if config.arg.data == "fashion":
    config.method.epochs = 20
  if config.arg.smoke:
    config.method.epochs = 1
    config.models.teacher.width = 8
  return common.finish(config)
