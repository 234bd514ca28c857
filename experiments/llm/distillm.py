"""DistiLLM from the stdlib teacher: skewed reverse KL, on-policy as far as it helps, with replay.

Paper: Ko et al. 2024 (arXiv:2402.03898), algorithm 1. The authors' tolerance is 0.1 nats on runs of
  days; on 100 steps the loss on new rows never rises that much, so it is 0 here.
Run:   python -m distill_jax.train --config experiments/llm/distillm.py --workdir runs/distillm
Takes: see docs/ledger.md, made from the divergences table, of which this is a row.
"""

from experiments.llm import common


def get_config(arg=None):
  method = dict(
    name="llm.distillm",
    capacity=1000,  # rows of the replay buffer
    interval=10,  # steps between two looks at the loss on the data
    tolerance=0.0,  # how much it must have risen, nats
    rise=0.1,  # then phi rises by this
  )
  config = common.base(arg, method)
  config.divergence.kind.name = "skew_reverse_kl"
  common.quickstart(config)
  if config.arg.smoke:
    config = common.smoke(config)
    config.method.capacity = 16
    config.method.interval = 2
  return config
