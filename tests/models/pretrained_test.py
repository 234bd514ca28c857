"""Model folders: bit-equal round trips, and what a damaged or a foreign folder says."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from distill_jax.config import ConfigError
from distill_jax.models import pretrained, transformer


def small(**changes):
  config = transformer.default_config()
  config.update(vocab_size=13, layers=2, width=8, heads=2, kv_heads=2, head_dim=4, mlp_width=12)
  config.update(changes)
  return config


def make_params(dtype="float32"):
  """Host arrays shaped as a model's, with the values that a careless cast would lose."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(transformer.make(small(tie_embeddings=False)).init, jax.random.key(0))
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(dtype), shapes)
  special = [0.0, -0.0, 1e-40, -3e38, np.inf, -np.inf, np.nan, 1 / 3]
  params["final_norm"] = np.array(special, "f4").astype(dtype)
  return params


def bits(tree):
  return jax.tree.map(lambda x: np.asarray(x).view(f"u{x.dtype.itemsize}"), tree)


def assert_bit_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)
  jax.tree.map(np.testing.assert_array_equal, bits(a), bits(b))


@pytest.fixture
def saved(tmp_path):
  """A folder with a model, and its config."""
  arch = small(tie_embeddings=False, rope_theta=5e5, dtype="bfloat16", remat="full")
  pretrained.save(tmp_path / "model", make_params(), arch, "float32")
  return tmp_path / "model", arch


def config_of(path, **changes):
  models = dict(student=small(**changes))
  return ConfigDict(dict(pretrained=dict(student=str(path)), models=models))


def one_line(error) -> str:
  assert "\n" not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_comes_back_bit_for_bit(tmp_path, dtype):
  params = make_params(jnp.dtype(dtype))
  pretrained.save(tmp_path, params, small(), dtype)
  loaded = pretrained.load(str(tmp_path))
  assert_bit_equal(loaded, params)
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(loaded))  # on the host


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_saving_rounds_to_the_dtype_that_is_asked_for(tmp_path, dtype):
  params = dict(a=dict(b=np.array([1 / 3, -2.5, 0.1, 1e-3], "f4")))
  pretrained.save(tmp_path, jax.device_put(params), small(), dtype)
  assert_bit_equal(
    pretrained.load(str(tmp_path)), jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), params)
  )


def test_the_folder_holds_the_architecture_and_the_run_the_rest(saved):
  path, arch = saved
  stored = json.loads((path / "config.json").read_text())
  assert set(stored) == set(arch.keys()) - set(pretrained.RUN_KEYS)
  config = config_of(path, layers=7, dtype="float32", remat="dots", param_dtype="bfloat16")
  got = pretrained.architecture(config, "student")
  expected = {**arch.to_dict(), "dtype": "float32", "remat": "dots", "param_dtype": "bfloat16"}
  assert got.to_dict() == expected
  assert config.models.student.layers == 7  # untouched
  made = jax.eval_shape(transformer.make(got).init, jax.random.key(0))
  assert jax.tree.map(np.shape, pretrained.load(str(path))) == jax.tree.map(np.shape, made)


def test_without_a_folder_the_architecture_is_that_of_the_config():
  config = config_of("", layers=7)
  assert pretrained.architecture(config, "student") is config.models.student


def test_an_older_folder_gets_the_defaults_of_keys_that_it_lacks(saved):
  path, _ = saved
  file = path / "config.json"
  stored = json.loads(file.read_text())
  del stored["qk_norm"], stored["logit_softcap"]
  file.write_text(json.dumps(stored))
  got = pretrained.architecture(config_of(path), "student")
  assert got.qk_norm is False and got.logit_softcap == 0.0


@pytest.mark.parametrize(
  "change, says",
  [
    (lambda s: json.dumps({**s, "layerz": 2}), "unknown key 'layerz'. Did you mean 'layers'?"),
    (lambda s: json.dumps(s)[:-9], "is not JSON: "),
    (lambda s: "", "is not JSON: "),
  ],
)
def test_a_foreign_or_damaged_config_is_one_line(saved, change, says):
  path, _ = saved
  file = path / "config.json"
  file.write_text(change(json.loads(file.read_text())))
  with pytest.raises(ConfigError) as error:
    pretrained.architecture(config_of(path), "student")
  message = one_line(error)
  assert says in message and str(file) in message


@pytest.mark.parametrize(
  "damage",
  [
    lambda content: b"",
    lambda content: content[:5],
    lambda content: content[:100],  # inside the header
    lambda content: content[:-1],
    lambda content: content + b"\0",
    lambda content: b"\xff" * 8 + content[8:],  # a header of 2^64 bytes
    lambda content: content[:8] + b"x" + content[9:],
    lambda content: b"\x80\x05\x95pickle" + content,
  ],
)
def test_a_damaged_safetensors_file_is_one_line(saved, damage):
  path, _ = saved
  file = path / "model.safetensors"
  file.write_bytes(damage(file.read_bytes()))
  with pytest.raises(ConfigError) as error:
    pretrained.load(str(path))
  message = one_line(error)
  assert str(file) in message and "fetch or train it again" in message


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", ""])
def test_a_folder_without_a_model_is_named(saved, missing):
  path, _ = saved
  if missing:
    (path / missing).unlink()
  else:
    shutil.rmtree(path)
  for call in (lambda: pretrained.load(str(path)), lambda: pretrained.folder(str(path))):
    with pytest.raises(ConfigError, match=r"No model at .*config\.json and model\.safetensors"):
      call()


def test_a_path_is_relative_to_here_or_else_to_the_project(saved, tmp_path, monkeypatch):
  path, _ = saved
  monkeypatch.chdir(tmp_path)
  assert pretrained.folder("model").resolve() == path
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir(tmp_path / "elsewhere")
  monkeypatch.setattr(pretrained, "ROOT", tmp_path)
  assert pretrained.folder("model") == path
