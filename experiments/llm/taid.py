"""TAID from the stdlib teacher: the target moves from the student's distribution to the teacher's.

Paper: Shing et al. 2025 (arXiv:2501.16937), algorithm 1, with the authors' constants.
Run:   python -m distill_jax.train --config experiments/llm/taid.py --workdir runs/taid
Takes: see docs/ledger.md, made from the divergences table, of which this is a row.
"""

from experiments.llm import common


def get_config(arg=None):
  method = dict(
    name="llm.taid",
    start=0.4,  # the teacher's share in the target at the first step
    rate=5e-4,  # alpha of the paper: how far a falling loss moves it
    decay=0.99,  # beta: of the average of how fast the loss falls
  )
  config = common.base(arg, method)
  common.quickstart(config)
  return common.smoke(config) if config.arg.smoke else config
