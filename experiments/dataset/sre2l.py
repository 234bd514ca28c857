"""SRe2L; `variant=cda` with a curriculum of crops, `variant=cv_dd` with a committee of teachers.

Paper: Yin, Xing, Shen, Squeeze, Recover and Relabel (arXiv:2306.13092), table 2;
  Yin and Shen, Dataset Distillation in Large Data Era (CDA, arXiv:2311.18838);
  Cui et al., Dataset Distillation via Committee Voting (CV-DD, arXiv:2501.07575), table 1.
Run:   python -m distill_jax.train
  --config experiments/dataset/sre2l.py[:variant=cda,data=fashion,ipc=10] --workdir runs/sre2l
Takes: docs/datasets.md.
  A teacher in pretrained.teacher has to see images as data.preprocess makes them.
"""

from distill_jax.config import ConfigError
from distill_jax.models import resnet
from experiments.dataset import common

COMMITTEE = dict(teacher=(16, 32), thin=(8, 32), deep=(16, 24, 32))  # widths of the stages


def get_config(arg=None):
  config = common.base(arg, method(), variant="sre2l")
  config.start = "real"  # as CV-DD; the others' noise ends at 0.35 on digits, real images at 0.80
  config.optim.name, config.optim.lr, config.optim.schedule = "adam", 0.02, "cosine"
  config.optim.b2, config.optim.final = 0.9, 0.0
  config.label_kind = "logits"
  config.steps = 150 if config.arg.data == "digits" else 4000
  match config.arg.variant:
    case "sre2l":
      widths = dict(teacher=COMMITTEE["teacher"])
    case "cda":
      widths = dict(teacher=COMMITTEE["teacher"])
      config.method.milestone = 1.0
    case "cv_dd":
      widths = COMMITTEE
      config.method.members = 2
      config.method.scores = (0.0, 0.0, 0.0)
    case other:
      raise ConfigError(f"variant={other!r}: sre2l, cda or cv_dd.")
  teachers(config, widths)
  return finish(config)


def method():
  return dict(
    name="dataset.sre2l",
    least=0.08,  # area of a crop, at least, at the end of the curriculum
    milestone=0.0,  # share of the run that the curriculum takes
    flip=False,
    block=0,  # images whose statistics are matched together; 0: all
    at_once=1,  # blocks that are computed side by side
    members=1,  # teachers that a step draws
    relabel=True,  # a teacher's logits are the labels; else classes
    low=(-1.0,),  # what a channel may be, where no real image says it
    high=(1.0,),
    **teacher_keys(),
  )


def teacher_keys():
  """Keys of the methods that look at trained networks alone."""
  return dict(
    squeeze=400,  # updates of a teacher that is trained here; not read if it is in a file
    r_bn=0.01,  # weight of the batch norms
    first=10.0,  # of the first of them
    scores=(0.0,),  # of each teacher, percent, by its name: their votes
    temperature=5.0,  # logits that are labels are divided by it
  )


def teachers(config, widths):
  """Teachers of one block a stage, as many as there are names."""
  for name, stages in widths.items():
    given = resnet.default_config()
    given.widths, given.blocks, given.stem = stages, (1,) * len(stages), "small"
    given.num_classes = config.models.student.num_classes
    config.models[name] = given
    config.pretrained[name] = ""  # a model folder; "" trains it first


def finish(config):
  """The last line; smoke trains teachers for a moment."""
  if config.arg.smoke:
    config.method.squeeze = 100
    for name in config.pretrained:
      config.models[name].widths = (8,) * len(config.models[name].widths)
    config.optim.eps = 1e-5
  return common.finish(config)
