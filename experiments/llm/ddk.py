"""Forward KL with rows drawn where the student is behind the stdlib teacher, of eight of its
folders.

Paper: Liu et al. 2024 (arXiv:2407.16154): smoothing 0.5, gamma 0.2, temperature 1, the best of
  their tables 3 and 4; their interval is 1000 of 30,000 steps. No number of theirs on this text.
Run:   python -m distill_jax.train --config experiments/llm/ddk.py --workdir runs/ddk
Takes: about 3 minutes on two busy CPU cores; no number is recorded yet.
"""

from experiments.llm import common


def get_config(arg=None):
  config = common.base(
    arg,
    method=dict(
      name="llm.ddk",
      interval=10,  # steps between two looks at the domains
      held_rows=8,  # of each domain, to look at
      smoothing=0.5,  # alpha of the paper; 0 draws all domains alike
      gamma=0.2,  # weight of the divergence, beside the cross-entropy
    ),
  )
  config.data.name = "domains"
  common.quickstart(config)
  config.evals = ("language",)
  if config.arg.smoke:
    config = common.smoke(config)
    config.method.interval = 2
  return config
