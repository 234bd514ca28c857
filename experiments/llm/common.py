"""Keys of the language-model experiments."""

from ml_collections import ConfigDict

from distill_jax.models import transformer
from experiments import common

TEACHER = "distill_jax/assets/stdlib_teacher"
STUDENT = "distill_jax/assets/stdlib_student"

# (regex, partition), the partition counted from an array's last axis: see mesh.shardings
SHARDING = (
  ("embed/tokens", ("tensor", "fsdp")),  # [V, D]
  ("/head$", ("fsdp", "tensor")),  # [D, V]
  ("/(query|key|value)$", ("fsdp", "tensor", None)),  # [L, D, H, K]
  ("/output$", ("tensor", None, "fsdp")),  # [L, H, K, D]
  ("/(gate|up)$", ("fsdp", "tensor")),  # [L, D, F]
  ("/down$", ("tensor", "fsdp")),  # [L, F, D]
)


def base(arg=None, method=None, **defaults):
  """A student of 0.4M parameters and its teacher of 2.2M on the Python standard library's
  source."""
  config = common.base(arg, method, **defaults)
  config.unit = "tokens"
  config.data.name = "text"
  config.data.source = "stdlib"  # stdlib | a file | a folder | tfds:NAME
  config.data.field = "text"  # of a TFDS example
  config.data.tokenizer = TEACHER  # bytes | a tokenizer.json | a folder with one
  config.data.teacher_tokenizer = ""  # where it is not the student's (data.name two_tokenizers)
  config.data.seq_len = 256
  config.data.teacher_seq_len = 128  # the same in tokens of a teacher_tokenizer
  config.data.targets = "completion"  # of prompts and completions: completion | all
  config.data.domains = 8  # folders of the source, for data.domains
  config.data.cache = ConfigDict()  # what a teacher thinks of the rows, for data.cached
  config.data.cache.folder = ""  # "": one in cache_dir, found by its content
  config.data.cache.of = "text"  # rows of data/: text | completions
  config.data.cache.kind = "top_k"  # top_k | sampled: ids drawn at random
  config.data.cache.k = 64  # ids, or draws, of each token
  config.data.cache.bits = 12  # of a log-probability, 2 to 24
  config.data.cache.hidden = ""  # "" | float16 | bfloat16: the last hidden states too
  config.data.cache.rows = 0  # so many, spread evenly over the text; 0: all
  config.data.cache.rows_per_shard = 512
  config.batch_size = 16
  config.evals = ("language",)
  config.eval_prompts = ""  # a jsonl file with prompt and completion; "": held-out text
  config.eval_tokens = 64  # that the student writes after each prompt

  config.pretrained = ConfigDict(dict(teacher=TEACHER, student=STUDENT))
  config.models = ConfigDict()  # of models that start from random weights; dtypes and remat of all
  for name in ("teacher", "student"):
    config.models[name] = transformer.default_config()
    config.models[name].vocab_size = 2048
  config.models.student.layers = 2
  config.models.student.width = 96
  config.models.student.heads = config.models.student.kv_heads = 3
  config.models.student.mlp_width = 256

  config.sharding.state = SHARDING
  config.sharding.frozen = SHARDING
  config.method.teachers = ConfigDict(dict(teacher=1.0))  # names in `models`, and their weights
  config.method.alpha = 1.0  # weight of the divergence; the rest is cross-entropy
  config.method.alpha_end = None  # at the last step, in a straight line; None: alpha
  config.method.logits = 0.0  # weight of the squared error of the logits
  config.method.on_policy = 0.0  # how often the student writes the continuation itself
  config.method.prompt = 64  # tokens of the data that it continues
  config.method.temperature = 1.0  # of its sampling
  config.divergence = ConfigDict()
  config.divergence.kind = ConfigDict()  # handed to losses.divergences.named
  config.divergence.kind.name = "forward_kl"
  config.divergence.kind.temperature = 1.0
  config.divergence.kind.beta = 0.5  # of generalized_js, the teacher's weight; of alpha_beta
  config.divergence.kind.alpha = 0.5  # of alpha_beta
  config.divergence.kind.skew = 0.1  # of skew_forward_kl and skew_reverse_kl
  config.divergence.temperature_end = None  # at the last step of kd; None: kind.temperature
  config.divergence.chunk = 1024  # tokens whose logits exist at a time
  return config.lock()  # from here on a misspelt key is an error


def quickstart(config):
  """The budget of the quickstart table's rows: equal student tokens from one warm start."""
  config.steps = 100
  config.batch_size = 16
  config.optim.lr = 2e-3  # the best of 1e-3, 2e-3 and 4e-3 for cross-entropy alone
  config.optim.warmup = 10
  config.evals = ("language", "own_text")
  config.eval_every = 25
  config.eval_batches = 4
  config.save_every = 25


def smoke(config):
  """Random models of a few thousand parameters on raw bytes."""
  config = common.smoke(config)
  config.batch_size = 8
  config.data.seq_len = 16
  config.data.tokenizer = "bytes"
  config.pretrained.teacher = config.pretrained.student = ""
  for model in (config.models.teacher, config.models.student):
    model.vocab_size = 264  # a multiple of 8, more than the tokenizer's 257
    model.layers = 2
    model.width = 16
    model.heads = model.kv_heads = 2
    model.head_dim = 8
    model.mlp_width = 32
  config.divergence.chunk = 32
  config.method.prompt = 8
  config.eval_tokens = 8
  return config
