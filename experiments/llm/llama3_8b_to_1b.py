"""Forward KL from Llama 3 8B to a student of the shape of Llama 3.2 1B, on 256 v5e chips.

Paper: Hinton et al. 2015 (arXiv:1503.02531); shapes: Grattafiori et al., The Llama 3 Herd of Models
  (arXiv:2407.21783).
Plan:  python -m distill_jax.plan --config experiments/llm/llama3_8b_to_1b.py --topology v5e:16x16
Takes: planned only, never run: docs/scale.md has the plan. Weights are random until pretrained.*
  name model folders.
"""

from experiments.llm import common


def get_config(arg=None):
  config = common.base(arg)
  config.method.name = "llm.kd"
  config.pretrained.teacher = config.pretrained.student = ""
  config.steps = 20_000
  config.batch_size = 256
  config.data.seq_len = 2048
  config.divergence.chunk = 65_536  # 256 tokens of each chip's sequences

  teacher, student = config.models.teacher, config.models.student
  for model in (teacher, student):
    model.vocab_size = 128_256
    model.heads = 32
    model.kv_heads = 8
    model.rope_theta = 500_000.0
    model.norm_eps = 1e-5
    model.dtype = "bfloat16"
  teacher.layers, teacher.width, teacher.head_dim, teacher.mlp_width = 32, 4096, 128, 14_336
  teacher.tie_embeddings = False
  teacher.param_dtype = "bfloat16"
  student.layers, student.width, student.head_dim, student.mlp_width = 16, 2048, 64, 8192
  student.remat = "full"

  config.optim.lr = 3e-4
  config.optim.warmup = 500
  config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, -1, 4
  if config.arg.smoke:
    config = common.smoke(config)
    config.mesh.tensor = 2
  return config
