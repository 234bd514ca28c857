"""Self-data distillation of the stdlib student: the teacher puts the text in its own words.

The paper's student is its teacher pruned; `--config.pretrained.student=FOLDER` takes what
`python -m distill_jax.prune` wrote. The default starts from the stdlib student's warm start.

Paper: Thangarasa et al. 2024 (arXiv:2410.09982), section 3.
Run:   python -m distill_jax.train --config experiments/llm/self_data.py --workdir runs/self_data
Takes: a minute or two on two CPU cores; no number is recorded yet.
"""

from experiments.llm import common


def get_config(arg=None):
  config = common.base(arg, dict(name="llm.self_data"))
  common.quickstart(config)
  if config.arg.smoke:
    config = common.smoke(config)
    config.method.temperature = 0.0  # what a random teacher samples can't be learnt
  return config
