"""GGUF files as the gguf package writes them: weights, architecture, tokenizer, and damage."""

import json

import jax
import numpy as np
import pytest

from distill_jax.config import ConfigError
from distill_jax.data import tokenizer
from distill_jax.models import gguf_file, hf_config, layout, pretrained, transformer
from distill_jax.models.families import FAMILIES

gguf = pytest.importorskip("gguf")

GEMMA = dict(
  activation="gelu", norm_plus_one=True, sandwich_norms=True, scale_embeddings=True, head_dim=8
)
MODELS = dict(
  llama=dict(kv_heads=2, tie_embeddings=False, rope_theta=5e5),
  qwen2=dict(qkv_bias=True, rope_scaling="linear", rope_factor=4.0),
  qwen3=dict(qk_norm=True, head_dim=16),
  gemma2=dict(
    GEMMA, attention_softcap=50.0, logit_softcap=30.0, sliding_window=6, sliding_pattern=2
  ),
  gemma3=dict(
    GEMMA, qk_norm=True, sliding_window=6, layers=7, sliding_pattern=6, rope_local_theta=1e4
  ),
  gpt2=dict(kind="gpt2", activation="gelu", max_positions=16),
)
WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", "a", "b", "c", "ab", "▁ab", "abc", "▁▁", "  \n"]


def build(name):
  arch = transformer.default_config()
  arch.update(vocab_size=64, layers=2, width=32, heads=4, kv_heads=4, head_dim=8, mlp_width=64)
  arch.update(MODELS[name])
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(transformer.make(arch).init, jax.random.key(0))
  params = jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype("f4"), shapes)
  return arch, params


def write(path, name, kind=None, extra=(), **changes):
  """The model as llama.cpp's converter lays it out, matrices in blocks of `kind`."""
  arch, params = build(name)
  writer = gguf.GGUFWriter(path, name)
  norm = writer.add_layer_norm_eps if name == "gpt2" else writer.add_layer_norm_rms_eps
  norm(1e-6)
  writer.add_block_count(arch.layers)
  writer.add_embedding_length(arch.width)
  writer.add_feed_forward_length(arch.mlp_width)
  writer.add_head_count(arch.heads)
  writer.add_context_length(arch.max_positions)
  if name != "gpt2":
    writer.add_head_count_kv(arch.kv_heads)
    writer.add_key_length(arch.head_dim)
    writer.add_rope_freq_base(arch.rope_theta)
  if arch.rope_scaling == "linear":
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(arch.rope_factor)
  if arch.sliding_window:
    writer.add_sliding_window(arch.sliding_window)
  if arch.logit_softcap:
    writer.add_final_logit_softcapping(arch.logit_softcap)
    writer.add_attn_logit_softcapping(arch.attention_softcap)
  family = gguf_file.ARCHITECTURES[name]
  tensors = layout.theirs(FAMILIES[family].gguf, layout.paths(params), arch) | dict(extra)
  for title, x in tensors.items():
    if kind is None or x.ndim == 1:
      writer.add_tensor(title, x)
    else:
      writer.add_tensor(title, gguf.quants.quantize(x, kind), raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return arch, params


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read(name, tmp_path):
  path = tmp_path / "model.gguf"
  arch, params = write(path, name)
  found = pretrained.read_architecture(str(path))
  np.testing.assert_allclose(found.norm_eps, 1e-6)
  found.norm_eps = 1e-6
  assert hf_config.normal_form(found) == hf_config.normal_form(arch)
  got = pretrained.read(pretrained.load(str(path)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, params)


def test_a_mesh_of_devices_reads_the_same(tmp_path):
  path = tmp_path / "model.gguf"
  _, params = write(path, "llama", gguf.GGMLQuantizationType.Q8_0)
  leaves = pretrained.load(str(path))
  mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  spec = dict.fromkeys(params["layers"], jax.P())
  spec |= dict(query=jax.P(None, "fsdp", "tensor"), up=jax.P(None, "fsdp", "tensor"))
  specs = dict(jax.tree.map(lambda _: jax.P(), params), layers=spec)
  layouts = jax.tree.map(lambda s: jax.sharding.NamedSharding(mesh, s), specs)
  arrays = jax.device_get(pretrained.put(leaves, layouts))
  jax.tree.map(np.testing.assert_array_equal, arrays, pretrained.read(leaves))


def test_llamas_pairs_lie_side_by_side_in_the_file(tmp_path):
  """Row 2 p + r of a head in the file is row r K / 2 + p of ours."""
  path = tmp_path / "model.gguf"
  _, params = write(path, "llama")
  stored = gguf.GGUFReader(path).get_tensor(0)
  stored = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.attn_q.weight").data
  ours = params["layers"]["query"][1]  # [32, 4, 8]
  for p in range(4):
    for r in range(2):
      np.testing.assert_array_equal(stored[2 * 8 + 2 * p + r], ours[:, 2, r * 4 + p])


def test_gemmas_norms_are_stored_with_their_one(tmp_path):
  path = tmp_path / "model.gguf"
  _, params = write(path, "gemma2")
  stored = next(t for t in gguf.GGUFReader(path).tensors if t.name == "output_norm.weight").data
  np.testing.assert_allclose(stored, params["final_norm"] + 1)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "F16", "BF16"])
def test_blocks_are_dequantised(kind, tmp_path):
  path = tmp_path / "model.gguf"
  _, params = write(path, "qwen2", gguf.GGMLQuantizationType[kind])
  up = pretrained.read(pretrained.load(str(path)))["layers"]["up"]
  error = np.abs(up - params["layers"]["up"]).max()
  assert 0 < error < (0.2 if kind == "Q4_0" else 0.06 if kind == "Q5_1" else 0.02)


def test_factors_of_the_rates_are_llama_3s_scaling(tmp_path):
  arch = build("llama")[0]
  arch.head_dim, arch.rope_scaling, arch.rope_factor = 8, "llama3", 8.0
  plain = transformer.attention.variation(build("llama")[0])[2][0]
  factors = (plain / transformer.attention.variation(arch)[2][0]).astype("f4")
  assert factors.max() == 8 and factors.min() == 1
  write(tmp_path / "a.gguf", "llama", extra={"rope_freqs.weight": factors})
  found = pretrained.read_architecture(str(tmp_path / "a.gguf"))
  assert (found.rope_scaling, found.rope_factor) == ("llama3", 8.0)
  pretrained.load(str(tmp_path / "a.gguf"))
  write(tmp_path / "b.gguf", "llama", extra={"rope_freqs.weight": np.arange(1, 5, dtype="f4")})
  assert "rope_freqs.weight is not the scaling" in one_line(tmp_path / "b.gguf")


def one_line(path, call=pretrained.load) -> str:
  with pytest.raises(ConfigError) as error:
    call(str(path))
  assert "\n" not in str(error.value) and str(path) in str(error.value)
  return str(error.value)


@pytest.mark.parametrize("size", [0, 3, 20, 60, 700, -1])
def test_a_truncated_file_is_one_line(size, tmp_path):
  path = tmp_path / "model.gguf"
  write(path, "llama")
  path.write_bytes(path.read_bytes()[:size])
  assert "is not a whole GGUF file" in one_line(path)


@pytest.mark.parametrize(
  "at, value, says",
  [
    (0, b"GGML", "does not begin with GGUF"),
    (4, b"\1\0\0\0", "version 1"),
    (8, b"\xff" * 8, "within its header"),  # tensors
    (16, b"\xff" * 8, "within its header"),  # keys
    (24, b"\xff" * 8, "within its header"),  # length of the first key
  ],
)
def test_no_length_is_believed(at, value, says, tmp_path):
  path = tmp_path / "model.gguf"
  write(path, "llama")
  content = path.read_bytes()
  path.write_bytes(content[:at] + value + content[at + len(value) :])
  assert says in one_line(path)


def test_another_architecture_and_other_tensors_are_told(tmp_path):
  path = tmp_path / "model.gguf"
  write(path, "llama", extra={"blk.0.ffn_gate_inp.weight": np.ones((2, 2), "f4")})
  assert "the first 'blk.0.ffn_gate_inp.weight'" in one_line(path)
  content = path.read_bytes()
  path.write_bytes(content.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba"))
  assert "unknown general.architecture 'mamba'" in one_line(path)


def sentencepiece(path, add_space_prefix=False, **changes):
  """Gemma's kind: pieces with scores, user-defined runs of spaces, bytes."""
  words = [*WORDS, *(f"<0x{i:02X}>" for i in range(256)), "<start>"]
  types = [3, 3, 3, 2, 1, 1, 1, 1, 1, 1, 1, 4, 4] + [6] * 256 + [3]
  writer = gguf.GGUFWriter(path, "gemma3")
  writer.add_tokenizer_model("llama")
  writer.add_token_list(words)
  writer.add_token_scores([0.0 if n != 1 else -float(i) for i, n in enumerate(types)])
  writer.add_token_types(types)
  writer.add_bos_token_id(2)
  writer.add_eos_token_id(1)
  writer.add_unk_token_id(3)
  writer.add_add_bos_token(True)
  writer.add_add_space_prefix(add_space_prefix)
  writer.add_chat_template("{% for m in messages %}<start>{{ m.content }}\n{% endfor %}")
  finish(writer)
  return tokenizer.load(str(path))


def finish(writer):
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


TEXTS = ["", "ab abc  c", "naïve 日本語 🜁", "a  \n b", "<eos> is text", "\x00\ttab\r\n"]


def test_a_tokenizer_of_pieces_and_scores(tmp_path):
  words = sentencepiece(tmp_path / "a.gguf")
  assert (words.vocab_size, words.begin, words.end) == (270, 2, 1)
  (ids,) = words.encode(["ab abc"])
  assert [WORDS[i] for i in ids] == ["ab", "▁ab", "c"]  # the best score first, not the longest
  for text, ids in zip(TEXTS, words.encode(TEXTS), strict=True):
    assert words.decode(ids.tolist()) == text
    assert words.token_bytes[ids].sum() == len(text.encode())
    assert words.end not in ids
  assert [WORDS[i] for i in words.encode(["  \n"])[0]] == ["  \n"]  # user-defined, whole
  assert words.encode(["<start>a"], special=True)[0].tolist() == [269, 5]
  assert words.encode(["<start>"])[0].tolist() != [269]
  assert words.chat([dict(role="user", content="ab")]) == "<start>ab\n"


def test_a_space_in_front_is_put_there_and_taken_away(tmp_path):
  words = sentencepiece(tmp_path / "a.gguf", add_space_prefix=True)
  (ids,) = words.encode(["ab"])
  assert [WORDS[i] for i in ids] == ["▁ab"] and words.decode(ids.tolist()) == "ab"


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "llama-bpe"])
def test_a_tokenizer_of_bytes_and_merges(pre, tmp_path):
  """The same merges in a tokenizer.json and in a GGUF file."""
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

  rust = Tokenizer(models.BPE())
  rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  rust.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=290, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
  )
  rust.train_from_iterator(["the cat sat on the mat 12345, isn't it?\n\n  the"] * 20, trainer)
  model = json.loads(rust.to_str())["model"]
  words = sorted(model["vocab"], key=model["vocab"].get)
  writer = gguf.GGUFWriter(tmp_path / "a.gguf", "qwen2")
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(words)
  writer.add_token_types([3] + [1] * (len(words) - 1))
  writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
  writer.add_eos_token_id(0)
  finish(writer)
  ours = tokenizer.load(str(tmp_path / "a.gguf"))
  assert ours.end == 0 and ours.begin is None
  for text, ids in zip(TEXTS, ours.encode(TEXTS), strict=True):
    assert ours.decode(ids.tolist()) == text
    assert ours.token_bytes[ids].sum() == len(text.encode())
  text = "the cat isn't on the mat 12345"
  if pre == "gpt-2":
    assert ours.encode([text])[0].tolist() == rust.encode(text).ids
  digits = [len(ours.decode([int(i)])) for i in ours.encode(["12345"])[0]]
  assert max(digits) <= dict(qwen2=1).get(pre, 5)


def test_a_saved_tokenizer_is_the_same(tmp_path):
  words = sentencepiece(tmp_path / "a.gguf")
  tokenizer.save(str(tmp_path / "a.gguf"), tmp_path / "saved")
  saved = tokenizer.load(str(tmp_path / "saved"))
  assert (saved.fingerprint, saved.begin, saved.end) == (words.fingerprint, 2, 1)
  np.testing.assert_array_equal(saved.token_bytes, words.token_bytes)
  assert saved.chat([dict(content="c")]) == "<start>c\n"


@pytest.mark.parametrize(
  "key, value, says",
  [
    ("tokenizer.ggml.model", "bert", "neither 'llama' nor 'gpt2'"),
    ("tokenizer.ggml.scores", [0.0], "270 tokens, but 1 scores"),
    ("tokenizer.ggml.token_type", [1], "its list of tokens is empty, has repeats, or lacks types"),
    ("tokenizer.ggml.tokens", ["a"] * 270, "has repeats"),
  ],
)
def test_a_tokenizer_that_can_t_be_is_one_line(key, value, says, tmp_path):
  from distill_jax.data import gguf_tokenizer

  sentencepiece(tmp_path / "a.gguf")
  metadata = {**gguf_file.parse(tmp_path / "a.gguf").metadata, key: value}
  assert says in one_line(tmp_path / "a.gguf", lambda p: gguf_tokenizer.build(p, metadata))
