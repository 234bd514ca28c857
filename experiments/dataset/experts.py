"""Expert trajectories for MTT and those after it; `variant=ftd` flat ones, `variant=smooth` smooth
ones. A step is an epoch.

Paper: Cazenavette, Wang, Torralba, Efros, Zhu, Dataset Distillation by Matching Training
  Trajectories (arXiv:2203.11932), section 3; Du et al., Minimizing the Accumulated Trajectory Error
  to Improve Dataset Distillation (arXiv:2211.11004), section 3; Shen et al., Efficient Dataset
  Distillation through Alignment with Smooth and High-Quality Expert Trajectories
  (arXiv:2310.10541).
Run:   python -m distill_jax.train
  --config experiments/dataset/experts.py[:variant=ftd,data=fashion] --workdir runs/experts
  python -m distill_jax.export --workdir runs/experts --out my_experts --tree trajectory
  --dtype float32
Takes: docs/datasets.md.
"""

from distill_jax.config import ConfigError
from distill_jax.distilled import experts
from experiments.dataset import common


def get_config(arg=None):
  config = common.base(
    arg, dict(name="dataset.experts", experts=experts.default_config()), variant="mtt"
  )
  given = config.method.experts
  if config.arg.variant not in ("mtt", "ftd", "smooth"):
    raise ConfigError(f"variant={config.arg.variant!r}: mtt, ftd or smooth.")
  config.evals = ("experts",)
  config.unit = "epochs"
  config.log_every = 5
  config.augment = config.protocol.augment
  if config.arg.data == "digits":
    given.count, given.batch_size, given.lr = 8, 64, 0.05
    config.steps = 15
  else:
    config.steps = given.epochs
  if config.arg.variant == "ftd":
    experts.ftd(given)
  if config.arg.variant == "smooth":
    experts.smooth(given)
  if config.arg.smoke:
    given.count, given.batch_size = 2, 256
  return common.finish(config)
