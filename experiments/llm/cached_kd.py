"""Distillation from a teacher that ran once over the text: what it thinks of each token is on disk.

The first run writes the cache, those after it read it; all losses but `sampled` and `hidden` read
the same one. To write it apart, on several machines: python -m distill_jax.cache --config ...

Paper: Shum et al. 2024 (arXiv:2408.12168), loss=first; Anshumann et al. 2025 (arXiv:2503.16870),
  loss=sampled; no numbers of theirs on this text.
Run:   python -m distill_jax.train --config experiments/llm/cached_kd.py[:loss=tail] --workdir
  runs/cached_kd
       loss: tail | renormalised | first | decoupled | sampled | hidden
       of=completions: of packed prompts and completions, where only completions count
Takes: 1.5 minutes to write 1,600 rows (80 MB), then 2.2 minutes for 100 steps, on two CPU cores
  that other programs kept busy. loss=tail, seed 0: language/bits_per_byte 1.777, teacher_kl 1.091.
  of=completions, idle: 75 s in all; 1.743 and 1.103 on the bodies of held-out functions.
"""

from experiments.llm import common


def get_config(arg=None):
  config = common.base(
    arg,
    method=dict(
      name="llm.cached_kd",
      loss="tail",  # see methods/llm/cached_kd.py
      ids=0,  # of the cached ids, the likeliest; 0: all
    ),
    loss="tail",
    of="text",
  )
  config.method.loss = config.arg.loss
  config.data.name = "cached"
  config.data.cache.of = config.arg.of
  config.data.cache.rows = 1600  # what the quickstart's 100 steps of 16 read
  common.quickstart(config)
  config.evals = ("language", "agreement")  # FIRST is about calibration
  if config.arg.loss == "first":
    config.method.ids = 5
  if config.arg.loss == "sampled":
    config.data.cache.kind, config.data.cache.k = "sampled", 50
  if config.arg.loss == "hidden":
    config.data.cache.hidden = "float16"
  if config.arg.smoke:
    config = common.smoke(config)
    config.data.cache.rows, config.data.cache.k, config.data.cache.rows_per_shard = 32, 8, 16
  return config
