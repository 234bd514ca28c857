"""Our transformer against transformers', on the same small random weights, read from its folders
and written for it. Needs the extra `parity`.
"""

import functools
import json

import jax
import numpy as np
import pytest

from distill_jax.models import huggingface, pretrained, transformer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(2)
pytestmark = pytest.mark.filterwarnings("ignore")  # those of transformers

SHAPE = dict(
  vocab_size=29,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=4,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=64,
)
LLAMA3 = dict(
  rope_type="llama3",
  rope_theta=500.0,
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=16,
)
LINEAR = dict(
  full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
  sliding_attention=dict(rope_type="default", rope_theta=1e4),
)
CASES = dict(
  llama2=("LlamaConfig", dict(num_key_value_heads=4)),
  llama3=("LlamaConfig", dict(rope_parameters=LLAMA3, head_dim=8)),
  llama_tied=("LlamaConfig", dict(tie_word_embeddings=True)),
  mistral=("MistralConfig", dict(sliding_window=5)),
  mistral_full=("MistralConfig", dict(sliding_window=None)),
  qwen2=("Qwen2Config", {}),
  qwen2_5=("Qwen2Config", dict(tie_word_embeddings=True, rope_parameters=dict(rope_theta=1e6))),
  qwen2_sliding=(
    "Qwen2Config",
    dict(use_sliding_window=True, sliding_window=3, max_window_layers=2),
  ),
  qwen3=("Qwen3Config", dict(head_dim=8, rope_parameters=dict(rope_theta=1e6))),
  gemma2=("Gemma2Config", dict(head_dim=8, query_pre_attn_scalar=12, sliding_window=5)),
  gemma3=(
    "Gemma3TextConfig",
    dict(head_dim=8, query_pre_attn_scalar=6, sliding_window=5, num_hidden_layers=7),
  ),
  gemma3_scaled=(
    "Gemma3TextConfig",
    dict(head_dim=8, sliding_window=5, num_hidden_layers=7, rope_parameters=LINEAR),
  ),
  gpt2=("GPT2Config", dict(vocab_size=29, n_embd=16, n_head=4, n_layer=3, n_positions=32)),
)
TOKENS = np.random.default_rng(0).integers(0, 29, (2, 24))


@functools.cache
def theirs(name):
  """A random model of transformers in which nothing is 0 or 1."""
  kind, changes = CASES[name]
  shape = {} if kind == "GPT2Config" else SHAPE
  config = getattr(transformers, kind)(**{**shape, **changes})
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(
    config, attn_implementation="eager", dtype=torch.float32
  )
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.2 * torch.randn_like(parameter))
  return model.eval()


def their_logits(model):
  with torch.no_grad():
    return model(torch.from_numpy(TOKENS)).logits.float().numpy()


def our_logits(path):
  arch = pretrained.read_architecture(str(path))
  model, params = transformer.make(arch), pretrained.read(pretrained.load(str(path)))
  run = jax.jit(lambda p: model.logits(p, model.hidden(p, TOKENS)))
  return np.asarray(run(jax.tree.map(lambda x: x.astype("f4"), params))), arch, params


@pytest.mark.parametrize("name", CASES)
def test_logits_agree_both_ways(name, tmp_path):
  model = theirs(name)
  model.save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
  expected = their_logits(model)
  assert expected.std() > 0.05
  ours, arch, params = our_logits(tmp_path / "theirs")
  np.testing.assert_allclose(ours, expected, atol=1e-4)
  family = huggingface.save(tmp_path / "ours", params, arch, "float32")
  assert family in (model.config.model_type, "llama", "qwen2")  # the first that can express it
  again, information = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "ours", attn_implementation="eager", output_loading_info=True
  )
  assert not any(information.values()), information
  np.testing.assert_allclose(their_logits(again.eval()), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["llama3", "gemma3_scaled", "gemma2"])
def test_keys_of_older_config_files_mean_the_same(name, tmp_path):
  """Those of before transformers 5, such as rope_theta, rope_scaling and rope_local_base_freq."""
  model = theirs(name)
  model.save_pretrained(tmp_path)
  expected = our_logits(tmp_path)[1]
  file = tmp_path / "config.json"
  stored = json.loads(file.read_text())
  rope = stored.pop("rope_parameters")
  stored.pop("layer_types", None)
  if "full_attention" in rope:
    stored["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    rope = rope["full_attention"]
  stored["rope_theta"] = rope.pop("rope_theta")
  stored["rope_scaling"] = rope if rope["rope_type"] != "default" else None
  file.write_text(json.dumps(stored))
  assert pretrained.read_architecture(str(tmp_path)).to_dict() == expected.to_dict()
