"""The tables of model families: which tensor of a Hugging Face or a GGUF file is which array of
ours (see layout.py for the letters). They are read in both directions.
"""

from typing import Any, NamedTuple

from distill_jax.models.layout import Row


def _rows(*lines: str, prefix: str = "") -> tuple[Row, ...]:
  """Lines `path | our axes | name | axes in the file`."""
  split = [[part.strip() for part in line.split("|")] for line in lines]
  return tuple(Row(path, ours, prefix + name, theirs) for path, ours, name, theirs in split)


# Names behind "model.", which some files leave out.
_ATTENTION = _rows(
  "embed/tokens           | V D   | embed_tokens.weight                         | V D",
  "final_norm             | D     | norm.weight                                 | D",
  "layers/attention_norm  | D     | layers.{}.input_layernorm.weight            | D",
  "layers/query           | D H K | layers.{}.self_attn.q_proj.weight           | HK D",
  "layers/key             | D G K | layers.{}.self_attn.k_proj.weight           | GK D",
  "layers/value           | D G K | layers.{}.self_attn.v_proj.weight           | GK D",
  "layers/output          | H K D | layers.{}.self_attn.o_proj.weight           | D HK",
  "layers/query_bias      | H K   | layers.{}.self_attn.q_proj.bias             | HK",
  "layers/key_bias        | G K   | layers.{}.self_attn.k_proj.bias             | GK",
  "layers/value_bias      | G K   | layers.{}.self_attn.v_proj.bias             | GK",
  "layers/query_norm      | K     | layers.{}.self_attn.q_norm.weight           | K",
  "layers/key_norm        | K     | layers.{}.self_attn.k_norm.weight           | K",
  "layers/gate            | D F   | layers.{}.mlp.gate_proj.weight              | F D",
  "layers/up              | D F   | layers.{}.mlp.up_proj.weight                | F D",
  "layers/down            | F D   | layers.{}.mlp.down_proj.weight              | D F",
  prefix="model.",
)
_HEAD = _rows("head | D V | lm_head.weight | V D")
_TWO_NORMS = _rows(
  "layers/mlp_norm             | D | layers.{}.post_attention_layernorm.weight   | D",
  prefix="model.",
)
_FOUR_NORMS = _rows(
  "layers/post_attention_norm  | D | layers.{}.post_attention_layernorm.weight   | D",
  "layers/mlp_norm             | D | layers.{}.pre_feedforward_layernorm.weight  | D",
  "layers/post_mlp_norm        | D | layers.{}.post_feedforward_layernorm.weight | D",
  prefix="model.",
)
_GPT2 = _rows(
  "embed/tokens                | V D   | wte.weight                | V D",
  "embed/positions             | N D   | wpe.weight                | N D",
  "final_norm                  | D     | ln_f.weight               | D",
  "final_norm_bias             | D     | ln_f.bias                 | D",
  "layers/attention_norm       | D     | h.{}.ln_1.weight          | D",
  "layers/attention_norm_bias  | D     | h.{}.ln_1.bias            | D",
  "layers/query                | D H K | h.{}.attn.c_attn.weight   | D 0HK",
  "layers/key                  | D G K | h.{}.attn.c_attn.weight   | D 1GK",
  "layers/value                | D G K | h.{}.attn.c_attn.weight   | D 2GK",
  "layers/query_bias           | H K   | h.{}.attn.c_attn.bias     | 0HK",
  "layers/key_bias             | G K   | h.{}.attn.c_attn.bias     | 1GK",
  "layers/value_bias           | G K   | h.{}.attn.c_attn.bias     | 2GK",
  "layers/output               | H K D | h.{}.attn.c_proj.weight   | HK D",
  "layers/output_bias          | D     | h.{}.attn.c_proj.bias     | D",
  "layers/mlp_norm             | D     | h.{}.ln_2.weight          | D",
  "layers/mlp_norm_bias        | D     | h.{}.ln_2.bias            | D",
  "layers/up                   | D F   | h.{}.mlp.c_fc.weight      | D F",
  "layers/up_bias              | F     | h.{}.mlp.c_fc.bias        | F",
  "layers/down                 | F D   | h.{}.mlp.c_proj.weight    | F D",
  "layers/down_bias            | D     | h.{}.mlp.c_proj.bias      | D",
  prefix="transformer.",
)

_GGUF = _rows(
  "embed/tokens                | V D   | token_embd.weight                  | V D",
  "final_norm                  | D     | output_norm.weight                 | D",
  "head                        | D V   | output.weight                      | V D",
  "layers/attention_norm       | D     | blk.{}.attn_norm.weight            | D",
  "layers/query                | D H K | blk.{}.attn_q.weight               | HK D",
  "layers/key                  | D G K | blk.{}.attn_k.weight               | GK D",
  "layers/value                | D G K | blk.{}.attn_v.weight               | GK D",
  "layers/output               | H K D | blk.{}.attn_output.weight          | D HK",
  "layers/query_bias           | H K   | blk.{}.attn_q.bias                 | HK",
  "layers/key_bias             | G K   | blk.{}.attn_k.bias                 | GK",
  "layers/value_bias           | G K   | blk.{}.attn_v.bias                 | GK",
  "layers/query_norm           | K     | blk.{}.attn_q_norm.weight          | K",
  "layers/key_norm             | K     | blk.{}.attn_k_norm.weight          | K",
  "layers/post_attention_norm  | D     | blk.{}.post_attention_norm.weight  | D",
  "layers/mlp_norm             | D     | blk.{}.ffn_norm.weight             | D",
  "layers/post_mlp_norm        | D     | blk.{}.post_ffw_norm.weight        | D",
  "layers/gate                 | D F   | blk.{}.ffn_gate.weight             | F D",
  "layers/up                   | D F   | blk.{}.ffn_up.weight               | F D",
  "layers/down                 | F D   | blk.{}.ffn_down.weight             | D F",
)
# Llama's queries and keys lie with the two of a pair side by side.
_GGUF_LLAMA = (
  *(row for row in _GGUF if row.path not in ("layers/query", "layers/key")),
  *_rows(
    "layers/query | D H RP | blk.{}.attn_q.weight | HPR D",
    "layers/key   | D G RP | blk.{}.attn_k.weight | GPR D",
  ),
)
# Gemma's norms are stored with their one added.
_GGUF_GEMMA = tuple(row._replace(shift=-1.0 if "norm" in row.path else 0.0) for row in _GGUF)
_GGUF_GPT2 = (
  *(row for row in _GGUF if "layers" not in row.path or "/mlp_norm" in row.path),
  *_rows(
    "embed/positions             | N D   | position_embd.weight        | N D",
    "final_norm_bias             | D     | output_norm.bias            | D",
    "layers/attention_norm       | D     | blk.{}.attn_norm.weight     | D",
    "layers/attention_norm_bias  | D     | blk.{}.attn_norm.bias       | D",
    "layers/query                | D H K | blk.{}.attn_qkv.weight      | 0HK D",
    "layers/key                  | D G K | blk.{}.attn_qkv.weight      | 1GK D",
    "layers/value                | D G K | blk.{}.attn_qkv.weight      | 2GK D",
    "layers/query_bias           | H K   | blk.{}.attn_qkv.bias        | 0HK",
    "layers/key_bias             | G K   | blk.{}.attn_qkv.bias        | 1GK",
    "layers/value_bias           | G K   | blk.{}.attn_qkv.bias        | 2GK",
    "layers/output               | H K D | blk.{}.attn_output.weight   | D HK",
    "layers/output_bias          | D     | blk.{}.attn_output.bias     | D",
    "layers/mlp_norm_bias        | D     | blk.{}.ffn_norm.bias        | D",
    "layers/up                   | D F   | blk.{}.ffn_up.weight        | F D",
    "layers/up_bias              | F     | blk.{}.ffn_up.bias          | F",
    "layers/down                 | F D   | blk.{}.ffn_down.weight      | D F",
    "layers/down_bias            | D     | blk.{}.ffn_down.bias        | D",
  ),
)


class Family(NamedTuple):
  """A family: its class in transformers, its tensors, what it fixes of our architecture, and the
  defaults of its config.json."""

  causal_lm: str
  rows: tuple[Row, ...]
  gguf: tuple[Row, ...]
  fixed: dict[str, Any]
  defaults: dict[str, Any]


_GEMMA = dict(
  activation="gelu", norm_plus_one=True, sandwich_norms=True, scale_embeddings=True, qkv_bias=False
)
_PLAIN = dict(activation="silu", qkv_bias=False, qk_norm=False)
_GEMMA_DEFAULTS = dict(head_dim=256, query_pre_attn_scalar=256, tie_word_embeddings=True)
_LLAMA_ROWS = (*_ATTENTION, *_TWO_NORMS, *_HEAD)
_GEMMA_ROWS = (*_ATTENTION, *_FOUR_NORMS, *_HEAD)

FAMILIES = dict(
  llama=Family("LlamaForCausalLM", _LLAMA_ROWS, _GGUF_LLAMA, _PLAIN, {}),
  mistral=Family("MistralForCausalLM", _LLAMA_ROWS, _GGUF_LLAMA, _PLAIN, dict(sliding_window=4096)),
  qwen2=Family("Qwen2ForCausalLM", _LLAMA_ROWS, _GGUF, dict(_PLAIN, qkv_bias=True), {}),
  qwen3=Family(
    "Qwen3ForCausalLM", _LLAMA_ROWS, _GGUF, dict(_PLAIN, qk_norm=True), dict(head_dim=128)
  ),
  gemma2=Family(
    "Gemma2ForCausalLM",
    _GEMMA_ROWS,
    _GGUF_GEMMA,
    dict(_GEMMA, qk_norm=False),
    dict(
      _GEMMA_DEFAULTS,
      sliding_window=4096,
      sliding_window_pattern=2,
      final_logit_softcapping=30.0,
      attn_logit_softcapping=50.0,
    ),
  ),
  gemma3_text=Family(
    "Gemma3ForCausalLM",
    _GEMMA_ROWS,
    _GGUF_GEMMA,
    dict(_GEMMA, qk_norm=True),
    dict(
      _GEMMA_DEFAULTS,
      sliding_window=4096,
      sliding_window_pattern=6,
      rope_theta=1e6,
      rope_local_base_freq=1e4,
    ),
  ),
  gpt2=Family(
    "GPT2LMHeadModel",
    (*_GPT2, *_HEAD),
    _GGUF_GPT2,
    dict(kind="gpt2", activation="gelu", qk_norm=False),
    dict(tie_word_embeddings=True, n_positions=1024, layer_norm_epsilon=1e-5),
  ),
)
