"""Every key that the core reads. A family's common.py adds those that its methods share; an
experiment changes values, and declares what its own method alone reads (`method=dict(...)`)."""

from ml_collections import ConfigDict

from distill_jax.config import parse_arg


def base(arg=None, method=None, **defaults):
  """The core's config.

  Args:
    arg: what follows the colon in `file.py:arg`: `smoke` shrinks a run to two steps on simulated
      devices, `seed=N`.
    method: `name`, a file under distill_jax/methods with dots, and the keys of that method alone.
    **defaults: further words that this experiment takes, with their defaults; they arrive in
      `config.arg`.
  """
  config = ConfigDict()
  config.arg = parse_arg(arg, smoke=False, seed=0, **defaults)
  config.seed = config.arg.seed
  config.seeds = 1  # runs at once, in one program: method.over_seeds
  config.steps = 1000
  config.batch_size = 16  # global
  config.unit = "examples"  # what the loss counts, for the throughput

  config.method = ConfigDict(dict(name="") if method is None else method)
  config.data = ConfigDict(dict(name=""))  # a file under distill_jax/data
  config.pretrained = ConfigDict()  # name -> model folder, "" for random weights
  config.evals = ()  # files under distill_jax/evals
  config.eval_every = 100  # steps; also after the last
  config.eval_batches = 8

  config.optim = ConfigDict()
  config.optim.name = "adamw"  # adamw | adam | sgd | lion | lamb
  config.optim.lr = 1e-3
  config.optim.schedule = "cosine"  # constant | linear | cosine | wsd
  config.optim.warmup = 20  # steps
  config.optim.final = 0.1  # learning rate at the end, as a fraction of lr
  config.optim.b1 = 0.9  # momentum, for sgd
  config.optim.b2 = 0.99
  config.optim.eps = 1e-8
  config.optim.weight_decay = 0.0
  config.optim.no_decay = "norm|bias"  # regex of parameter paths; vectors never decay
  config.optim.clip_norm = 1.0  # 0: none
  config.microbatches = 1  # gradient accumulation
  config.ema = ()  # (kind, value) pairs: constant | half_life | power
  config.max_skipped = 10  # stop after so many non-finite updates in a row

  config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1, slices=1))  # -1: the devices left over
  config.sharding = ConfigDict(
    dict(state=(), frozen=())
  )  # (regex, partition) tables, see mesh.shardings

  config.log_every = 10
  config.save_every = 100
  config.keep = 2  # latest checkpoints
  config.keep_best = 0  # and best, by best_metric
  config.best_metric = ""  # of an eval, for example "language/bits_per_byte"
  config.best_mode = "min"
  config.writers = ()  # beside metrics.jsonl: tensorboard, wandb
  config.cache_dir = "~/.cache/distill_jax"  # compiled programs and token ids
  return config


def smoke(config):
  """Two steps; the family's common.py has shrunk the rest."""
  config.steps = 2
  config.eval_every = config.save_every = config.log_every = 1
  config.eval_batches = 1
  config.optim.warmup = 1
  return config
