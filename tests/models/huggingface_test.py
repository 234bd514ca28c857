"""Hugging Face folders: what is read is what was written, part by part, and nothing is believed."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from distill_jax.config import ConfigError
from distill_jax.models import hf_config, huggingface, layout, pretrained, transformer
from distill_jax.models.families import FAMILIES

GEMMA = dict(norm_plus_one=True, sandwich_norms=True, scale_embeddings=True, activation="gelu")
STUDENTS = dict(
  llama=dict(kv_heads=2, tie_embeddings=False),
  mistral=dict(kv_heads=2, sliding_window=3),
  qwen2=dict(qkv_bias=True, sliding_window=3, full_layers=(0,)),
  qwen3=dict(qk_norm=True, head_dim=6),
  gemma2=dict(GEMMA, attention_softcap=5.0, logit_softcap=3.0, query_scalar=8.0),
  gemma3_text=dict(GEMMA, qk_norm=True, sliding_window=3, sliding_pattern=2, rope_local_theta=50.0),
  gpt2=dict(kind="gpt2", activation="gelu", max_positions=16),
)


def small(**changes):
  config = transformer.default_config()
  config.update(vocab_size=13, layers=3, width=16, heads=4, kv_heads=4, head_dim=4, mlp_width=24)
  config.update(changes)
  return config


def draw(arch):
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(transformer.make(arch).init, jax.random.key(0))
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), shapes)


@pytest.fixture
def saved(tmp_path):
  """A Llama in several files, and its parameters."""
  arch = small(kv_heads=2, tie_embeddings=False)
  params = draw(arch)
  huggingface.save(tmp_path / "llama", params, arch, "float32", shard=4000)
  return tmp_path / "llama", params


@pytest.mark.parametrize("family", STUDENTS)
def test_what_is_written_is_read_again(family, tmp_path):
  arch = small(**STUDENTS[family])
  params = draw(arch)
  assert huggingface.save(tmp_path, params, arch, "float32") == family
  back = pretrained.read_architecture(str(tmp_path))
  assert hf_config.normal_form(back) == hf_config.normal_form(arch)
  leaves = pretrained.load(str(tmp_path))
  assert all(isinstance(x, layout.Leaf) for x in jax.tree.leaves(leaves))  # not yet read
  jax.tree.map(np.testing.assert_array_equal, pretrained.read(leaves), params)


def test_gpt2_joins_query_key_and_value(tmp_path):
  arch = small(**STUDENTS["gpt2"])
  params = draw(arch)
  huggingface.save(tmp_path, params, arch, "float32")
  joined = load_file(tmp_path / "model.safetensors")["transformer.h.1.attn.c_attn.weight"]
  parts = [params["layers"][name][1].reshape(16, 16) for name in ("query", "key", "value")]
  np.testing.assert_array_equal(joined, np.concatenate(parts, 1))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_any_part_is_that_part_of_the_whole(family, tmp_path):
  arch = small(**STUDENTS[family])
  params = draw(arch)
  huggingface.save(tmp_path, params, arch, "float32")
  rng = np.random.default_rng(0)

  def check(leaf, whole):
    for _ in range(4):
      ends = [sorted(rng.choice(n + 1, 2, replace=False)) for n in whole.shape]
      part = tuple(slice(*pair) for pair in ends)
      np.testing.assert_array_equal(leaf.read(part), whole[part])

  jax.tree.map(check, pretrained.load(str(tmp_path)), params)


def test_a_device_reads_its_own_part_alone(saved):
  path, params = saved
  asked = []

  def spied(leaf):
    def read(index):
      asked.append(leaf.read(index).size)
      return leaf.read(index)

    return layout.Leaf(leaf.shape, leaf.dtype, read)

  leaves = jax.tree.map(spied, pretrained.load(str(path)))
  mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
  shardings = jax.tree.map(lambda x: NamedSharding(mesh, jax.P()), leaves)
  shardings["layers"]["up"] = NamedSharding(mesh, jax.P(None, "fsdp"))  # [3, 16, 24]
  shardings["embed"]["tokens"] = NamedSharding(mesh, jax.P(None, "fsdp"))
  arrays = pretrained.put(leaves, shardings)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(arrays), params)
  assert arrays["layers"]["up"].sharding == shardings["layers"]["up"]
  assert asked.count(3 * 16 * 24 // 8) >= 8 and asked.count(13 * 16 // 8) >= 8


def test_host_arrays_of_our_own_folders_stay(tmp_path):
  x = dict(a=np.ones(3))
  assert pretrained.put(x, dict(a=None))["a"] is x["a"] and pretrained.read(x)["a"] is x["a"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_of_the_file_is_that_of_the_leaves(dtype, tmp_path):
  arch = small()
  params = draw(arch)
  huggingface.save(tmp_path, params, arch, dtype)
  leaves = pretrained.load(str(tmp_path))
  assert {str(x.dtype) for x in jax.tree.leaves(leaves)} == {dtype}
  rounded = jax.tree.map(lambda x: np.asarray(jax.numpy.asarray(x, dtype)), params)
  jax.tree.map(np.testing.assert_array_equal, pretrained.read(leaves), rounded)


def test_names_without_or_with_another_prefix(tmp_path):
  """Base models leave out `model.`, models of text and images put more in front."""
  arch = small(**STUDENTS["gemma3_text"])
  params = draw(arch)
  huggingface.save(tmp_path, params, arch, "float32")
  file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
  tensors, stored = load_file(file), json.loads(config.read_text())
  bare = {name.removeprefix("model."): x for name, x in tensors.items()}
  save_file(bare, file)
  jax.tree.map(
    np.testing.assert_array_equal, pretrained.read(pretrained.load(str(tmp_path))), params
  )
  images = {"vision_tower.patch.weight": np.ones((2, 2), "f4")}
  save_file({f"language_model.{name}": x for name, x in tensors.items()} | images, file)
  config.write_text(json.dumps(dict(model_type="gemma3", text_config=stored)))
  jax.tree.map(
    np.testing.assert_array_equal, pretrained.read(pretrained.load(str(tmp_path))), params
  )


def one_line(path, call=pretrained.load) -> str:
  with pytest.raises(ConfigError) as error:
    call(str(path))
  assert "\n" not in str(error.value)
  return str(error.value)


def rewrite(path, **changes):
  """config.json with other values; None removes a key."""
  file = path / "config.json"
  stored = {**json.loads(file.read_text()), **changes}
  file.write_text(json.dumps({k: v for k, v in stored.items() if v is not None}))


@pytest.mark.parametrize(
  "changes, says",
  [
    (dict(model_type="lama"), "unknown model_type 'lama'. Did you mean 'llama'?"),
    (dict(model_type="t5"), "unknown model_type 't5'. Known: "),
    (dict(hidden_size=None), "no key 'hidden_size'"),
    (dict(hidden_size="wide"), "invalid literal"),
    (dict(hidden_act="relu"), "activation 'relu' is not supported"),
    (dict(mlp_bias=True), "mlp_bias = True is not supported"),
    (dict(quantization_config=dict(bits=4)), "quantization_config = "),
    (dict(rope_scaling=dict(rope_type="yarn", factor=4), rope_parameters=None), "'yarn'"),
    (dict(num_key_value_heads=3), "heads (4) must be a multiple of kv_heads (3)"),
    (dict(num_hidden_layers=4), "no tensor 'model.layers.3."),
  ],
)
def test_a_config_that_can_t_be_is_one_line(saved, changes, says):
  path, _ = saved
  rewrite(path, **changes)
  message = one_line(path)
  assert says in message and (str(path) in message or "no model" in message)


def test_shapes_are_checked_before_anything_is_read(saved):
  path, _ = saved
  rewrite(path, vocab_size=10**12)
  message = one_line(path)
  assert "'model.embed_tokens.weight' has shape [13, 16]" in message
  assert "the architecture asks for [1000000000000, 16]" in message and ".safetensors" in message


def test_tensors_that_nobody_asks_for_are_another_model(saved):
  path, _ = saved
  rewrite(path, num_hidden_layers=2)
  assert "tensors that the architecture does not ask for, the first 'model.layers.2." in one_line(
    path
  )


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_truncated_file_is_one_line(saved, size):
  path, _ = saved
  file = sorted(path.glob("*.safetensors"))[1]
  file.write_bytes(file.read_bytes()[:size])
  message = one_line(path)
  assert str(file) in message and "is not a whole safetensors file" in message


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", ".."])
def test_an_index_does_not_leave_its_folder(saved, name):
  path, _ = saved
  (path.parent / "model.safetensors").write_bytes(b"")
  edit_index(path, name)
  assert f"names {name!r}, which is not a file of its folder" in one_line(path)


def edit_index(path, name):
  index = path / "model.safetensors.index.json"
  stored = json.loads(index.read_text())
  stored["weight_map"]["model.norm.weight"] = name
  index.write_text(json.dumps(stored))


def test_an_index_that_names_what_is_not_there(saved):
  path, _ = saved
  edit_index(path, "model-9.safetensors")
  assert "names 'model-9.safetensors', which is missing" in one_line(path)
  edit_index(path, sorted(f.name for f in path.glob("*.safetensors"))[-1])
  assert "no tensor 'model.norm.weight', which model.safetensors.index.json places" in one_line(
    path
  )
  (path / "model.safetensors.index.json").write_text("{}")
  assert "has no weight_map" in one_line(path)


def test_a_missing_tensor_and_one_of_integers(tmp_path):
  arch = small()
  huggingface.save(tmp_path, draw(arch), arch, "float32")
  file = tmp_path / "model.safetensors"
  tensors = load_file(file)
  save_file({**tensors, "model.norm.weight": np.ones(16, "i4")}, file)
  assert "'model.norm.weight' is I32" in one_line(tmp_path)
  del tensors["model.layers.1.mlp.up_proj.weight"]
  save_file(tensors, file)
  message = one_line(tmp_path)
  assert "no tensor 'model.layers.1.mlp.up_proj.weight'" in message and str(file) in message


def test_a_student_that_no_family_has_is_refused(tmp_path):
  with pytest.raises(ConfigError, match=r"No Hugging Face family .* llama differs in logit_"):
    huggingface.save(tmp_path, {}, small(logit_softcap=3.0), "float32")
  assert not any(tmp_path.iterdir())


def test_every_row_of_the_tables_is_used():
  """A misspelt path would be read as a tensor that is missing, or be left out on the way back."""
  for name, changes in STUDENTS.items():
    asked = {*layout.paths(draw(small(**changes))), "head"} - (
      {"head"} if name == "gpt2" else set()
    )
    for rows in (FAMILIES[name].rows, FAMILIES[name].gguf):
      assert asked <= {row.path for row in rows}


def test_a_run_starts_from_a_folder_of_several_files(saved):
  """The loop's init, on eight devices."""
  from distill_jax import config as config_lib
  from distill_jax import train
  from distill_jax.mesh import make_mesh

  path, params = saved
  config = config_lib.load("experiments/llm/kd.py:smoke")
  config.pretrained.teacher = str(path)
  config.data.tokenizer = "bytes"
  config.mesh.fsdp = 2
  for model in (config.models.teacher, config.models.student):
    model.param_dtype = "bfloat16"
  rewrite(path, vocab_size=13)
  mesh = make_mesh(ConfigDict(config.mesh))
  with pytest.raises(ConfigError, match="vocabulary of 13"), jax.set_mesh(mesh):
    train.build(config, mesh)
  arch = small(kv_heads=2, tie_embeddings=False, vocab_size=264)
  params = draw(arch)
  huggingface.save(path, params, arch, "float32", shard=4000)
  with jax.set_mesh(mesh):
    program = train.build(config, mesh)
    _, frozen = program.init(program.keys[0], program.pretrained)
  rounded = jax.tree.map(lambda x: np.asarray(x.astype(jax.numpy.bfloat16)), params)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(frozen["teacher"]), rounded)
  assert frozen["teacher"]["layers"]["up"].sharding.spec[1] == "fsdp"
