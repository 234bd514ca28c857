"""The config.json of Hugging Face folders: into our architecture, and back."""

from typing import Any

from distill_jax.config import ConfigError, did_you_mean
from distill_jax.models import transformer
from distill_jax.models.attention import slides
from distill_jax.models.families import FAMILIES

# ours: theirs
KEYS = dict(
  vocab_size="vocab_size",
  layers="num_hidden_layers",
  width="hidden_size",
  heads="num_attention_heads",
  kv_heads="num_key_value_heads",
  head_dim="head_dim",
  mlp_width="intermediate_size",
  norm_eps="rms_norm_eps",
  tie_embeddings="tie_word_embeddings",
)
GEMMA_KEYS = dict(
  query_scalar="query_pre_attn_scalar",
  logit_softcap="final_logit_softcapping",
  attention_softcap="attn_logit_softcapping",
)
GPT2_KEYS = dict(
  vocab_size="vocab_size",
  layers="n_layer",
  width="n_embd",
  heads="n_head",
  mlp_width="n_inner",
  max_positions="n_positions",
  norm_eps="layer_norm_epsilon",
  tie_embeddings="tie_word_embeddings",
)
LLAMA3_KEYS = dict(
  rope_factor="factor",
  rope_low="low_freq_factor",
  rope_high="high_freq_factor",
  rope_original="original_max_position_embeddings",
)
ACTIVATIONS = dict(silu="silu", swish="silu", gelu_pytorch_tanh="gelu", gelu_new="gelu")
_ACTIVATION_NAMES = dict(silu="silu", gelu="gelu_pytorch_tanh")
# what a config.json may ask for that the transformer can't do, and the value that does not ask
REFUSED = dict(
  attention_bias=False,
  mlp_bias=False,
  use_bidirectional_attention=False,
  scale_attn_by_inverse_layer_idx=False,
  scale_attn_weights=True,
  add_cross_attention=False,
  quantization_config=None,
)


def decode(stored: dict[str, Any], file: str):
  """The family's name and our architecture of a Hugging Face config.json.

  Raises:
    ConfigError: a family, a key or a value that the transformer does not know; names the file.
  """
  if isinstance(stored.get("text_config"), dict):  # text and images: the text part
    stored = dict(stored["text_config"])
    stored.setdefault("model_type", "gemma3_text")
  name = stored["model_type"]
  if name not in FAMILIES:
    raise ConfigError(f"{file}: unknown model_type {name!r}." + did_you_mean(str(name), FAMILIES))
  family = FAMILIES[name]
  stored = {**dict(tie_word_embeddings=False), **family.defaults, **stored}
  for key, harmless in REFUSED.items():
    if bool(stored.get(key, harmless)) != bool(harmless):
      raise ConfigError(f"{file}: {key} = {stored[key]!r} is not supported.")
  arch = transformer.default_config()
  arch.update(family.fixed)
  try:
    _decode_shape(name, stored, arch)
    _decode_rotation(stored, arch)
    _decode_sliding(name, stored, arch)
  except (KeyError, TypeError, ValueError) as error:
    if isinstance(error, ConfigError):
      raise ConfigError(f"{file}: {error}") from None
    reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
    raise ConfigError(f"{file}: {reason}.") from None
  return name, arch


def _decode_shape(name, stored, arch):
  keys = GPT2_KEYS if name == "gpt2" else KEYS
  for ours, theirs in keys.items():
    value = stored.get(theirs)
    if value is None:
      value = {
        "head_dim": lambda: stored["hidden_size"] // stored["num_attention_heads"],
        "num_key_value_heads": lambda: stored["num_attention_heads"],
        "n_inner": lambda: 4 * stored["n_embd"],
      }.get(theirs, lambda: stored[theirs])()
    arch[ours] = type(arch[ours])(value)
  if name == "gpt2":
    arch.kv_heads, arch.head_dim = arch.heads, arch.width // arch.heads
  if name.startswith("gemma"):
    for ours, theirs in GEMMA_KEYS.items():
      arch[ours] = float(stored.get(theirs) or 0.0)
  activation = stored.get(_activation_key(name)) or _ACTIVATION_NAMES[arch.activation]
  if ACTIVATIONS.get(activation) != arch.activation:
    raise ConfigError(f"activation {activation!r} is not supported.")


def _activation_key(name):
  if name == "gpt2":
    return "activation_function"
  return "hidden_activation" if name.startswith("gemma") else "hidden_act"


def _decode_rotation(stored, arch):
  given = stored.get("rope_parameters") or stored.get("rope_scaling") or {}
  local: dict[str, Any] = {}
  if "full_attention" in given:
    given, local = given["full_attention"] or {}, given.get("sliding_attention") or {}
  arch.rope_theta = float(given.get("rope_theta") or stored.get("rope_theta") or 10_000.0)
  theta = local.get("rope_theta") or stored.get("rope_local_base_freq") or 0.0
  arch.rope_local_theta = float(theta)
  kinds = [str(p.get("rope_type") or p.get("type") or "default") for p in (given, local)]
  if kinds[0] not in ("default", "linear", "llama3") or kinds[1] != "default":
    raise ConfigError(
      f"rope_type {kinds[0] if kinds[1] == 'default' else kinds[1]!r} is not known."
    )
  if (
    given.get("partial_rotary_factor", 1.0) != 1.0 or stored.get("partial_rotary_factor", 1.0) != 1
  ):
    raise ConfigError("partial_rotary_factor is not supported.")
  if kinds[0] == "default":
    return
  arch.rope_scaling = kinds[0]
  for ours, theirs in LLAMA3_KEYS.items():
    if kinds[0] == "llama3" or ours == "rope_factor":
      arch[ours] = type(arch[ours])(given[theirs])


def _decode_sliding(name, stored, arch):
  window = stored.get("sliding_window") or 0
  kinds = stored.get("layer_types")
  if name.startswith("qwen") and not stored.get("use_sliding_window"):
    window = 0
  if name in ("llama", "gpt2") or not window:
    sliding = [False] * arch.layers
  elif kinds and name != "mistral":
    sliding = [kind == "sliding_attention" for kind in kinds]
    if len(kinds) != arch.layers or set(kinds) - {"sliding_attention", "full_attention"}:
      raise ConfigError(f"layer_types {kinds} does not fit {arch.layers} layers.")
  elif name.startswith("qwen"):
    sliding = [i >= stored.get("max_window_layers", 28) for i in range(arch.layers)]
  else:
    pattern = stored.get("sliding_window_pattern") or arch.layers + 1
    sliding = [name == "mistral" or (i + 1) % pattern != 0 for i in range(arch.layers)]
  set_sliding(arch, window, sliding)


def set_sliding(arch, window: int, sliding: list[bool]) -> None:
  """Lets these layers slide."""
  arch.sliding_window = int(window) if any(sliding) else 0
  arch.sliding_pattern = 0
  arch.full_layers = tuple(i for i, s in enumerate(sliding) if not s) if any(sliding) else ()
  if not any(sliding):
    arch.rope_local_theta = 0.0


def encode(arch) -> tuple[str, dict[str, Any]]:
  """The first family that can express an architecture, and its config.json.

  Raises:
    ConfigError: none can; names what the nearest lacks.
  """
  differences = {}
  for name, family in FAMILIES.items():
    stored = _encode(name, family, arch)
    back, want = normal_form(decode(stored, name)[1]), normal_form(arch)
    differences[name] = [k for k in want if want[k] != back[k]]
    if not differences[name]:
      if arch.width % arch.heads:  # transformers insists, though it does not need it
        raise ConfigError(f"width {arch.width} is not a multiple of heads {arch.heads}.")
      return name, stored
  nearest = min(differences, key=lambda name: len(differences[name]))
  raise ConfigError(
    f"No Hugging Face family has this architecture; {nearest} differs in "
    f"{', '.join(differences[nearest])}."
  )


def _encode(name, family, arch):
  keys = dict(GPT2_KEYS if name == "gpt2" else KEYS)
  if name.startswith("gemma"):
    keys |= GEMMA_KEYS
  stored = {theirs: arch[ours] for ours, theirs in keys.items()}
  stored |= dict(model_type=name, architectures=[family.causal_lm])
  stored[_activation_key(name)] = _ACTIVATION_NAMES[family.fixed["activation"]]
  if name == "gpt2":
    return stored
  rope: dict[str, Any] = dict(rope_type="default", rope_theta=arch.rope_theta)
  if arch.rope_scaling != "none":
    rope["rope_type"] = arch.rope_scaling
    wanted = ("rope_factor",) if arch.rope_scaling == "linear" else tuple(LLAMA3_KEYS)
    rope |= {LLAMA3_KEYS[key]: arch[key] for key in wanted}
  sliding = slides(arch)
  stored["max_position_embeddings"] = 131_072
  stored["sliding_window"] = arch.sliding_window or None
  if name.startswith("gemma"):
    stored["query_pre_attn_scalar"] = int(arch.query_scalar or arch.head_dim)
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
      stored[key] = stored[key] or None
    stored["sliding_window"] = arch.sliding_window or 4096
  if name.startswith(("gemma", "qwen")):
    stored["layer_types"] = ["sliding_attention" if s else "full_attention" for s in sliding]
  if name.startswith("qwen"):
    stored["use_sliding_window"] = any(sliding)
  if name == "gemma3_text":
    local = dict(rope_type="default", rope_theta=arch.rope_local_theta or arch.rope_theta)
    stored["rope_parameters"] = dict(full_attention=rope, sliding_attention=local)
    stored |= dict(rope_theta=rope["rope_theta"], rope_local_base_freq=local["rope_theta"])
  else:
    stored |= dict(rope_parameters=rope, rope_theta=rope["rope_theta"])
  if rope["rope_type"] != "default":  # for readers that know the older keys alone
    stored["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
  return stored


def normal_form(arch) -> dict[str, Any]:
  """An architecture with one spelling for what can be said in several ways."""
  run = ("dtype", "param_dtype", "remat", "attention", "weights", "lora_rank", "lora_alpha")
  form = {k: v for k, v in arch.items() if k not in run}
  form["slides"] = slides(arch)
  for key in ("sliding_pattern", "full_layers"):
    del form[key]
  form["query_scalar"] = float(arch.query_scalar or arch.head_dim)
  form["rope_local_theta"] = (
    (arch.rope_local_theta or arch.rope_theta) if any(slides(arch)) else 0.0
  )
  if arch.rope_scaling == "none":
    form["rope_factor"] = 0.0
  if arch.rope_scaling != "llama3":
    form["rope_low"] = form["rope_high"] = form["rope_original"] = 0.0
  if arch.kind == "gpt2":
    form["qkv_bias"] = True
    form |= dict.fromkeys([k for k in form if k.startswith("rope_")], 0.0)
  else:
    form["max_positions"] = 0
  return form
