"""Students that learn factors alone, and teachers with int8 weights."""

import json

import jax
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import export, method, train
from distill_jax.config import ConfigError
from distill_jax.mesh import make_mesh, put_batch
from distill_jax.models import lora, pretrained, transformer

TOKENS = np.random.default_rng(1).integers(0, 13, (2, 8))


def build(**changes):
  config = transformer.default_config()
  config.update(vocab_size=13, layers=2, width=16, heads=4, kv_heads=2, head_dim=4, mlp_width=24)
  config.update(changes)
  model = transformer.make(config)
  return config, model, model.init(jax.random.key(0))


def hidden(model, params):
  return jax.jit(model.hidden)(params, TOKENS)


def test_factors_begin_as_nothing_and_merge_into_their_matrices():
  _, plain, base = build()
  config, model, params = build(lora_rank=3)
  shapes = {k: x.shape for k, x in params["layers"].items() if lora.is_factor((dict_key(k),))}
  assert shapes["output_a"] == (2, 4, 4, 3) and shapes["output_b"] == (2, 3, 16)
  assert shapes["key_a"] == (2, 16, 3) and shapes["key_b"] == (2, 3, 2, 4) and len(shapes) == 14
  np.testing.assert_array_equal(hidden(model, params), hidden(plain, base))
  rng = np.random.default_rng(0)
  for name, x in params["layers"].items():
    if name in shapes:
      params["layers"][name] = 0.3 * rng.normal(size=x.shape).astype("f4")
  one = lora.merged(params, config)
  assert jax.tree.map(np.shape, one) == jax.tree.map(np.shape, base)
  w, a, b = (params["layers"][f"gate{end}"][1] for end in ("", "_a", "_b"))
  np.testing.assert_allclose(one["layers"]["gate"][1], w + 16 / 3 * a @ b, atol=1e-5)
  np.testing.assert_allclose(hidden(plain, one), hidden(model, params), atol=2e-5)
  assert np.abs(hidden(plain, one) - hidden(plain, base)).max() > 0.1


def dict_key(name):
  return jax.tree_util.DictKey(name)


def test_factors_alone_have_a_gradient():
  _, model, params = build(lora_rank=3)
  params["layers"]["query_b"] = params["layers"]["query_b"] + 1.0

  def loss(params):
    return (model.logits(params, model.hidden(params, TOKENS)) ** 2).mean()

  gradient = jax.tree_util.tree_leaves_with_path(jax.grad(loss)(params))
  for path, g in gradient:
    name = jax.tree_util.keystr(path)
    moves = lora.is_factor(path) and (name[-3] == "b" or "query" in name)
    assert bool(np.any(g)) == moves, name


def test_int8_is_the_nearest_step_of_each_output():
  _, plain, params = build()
  _, model, fresh = build(weights="int8")
  small = dict(params, layers=lora.int8(params["layers"]))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), small) == jax.tree.map(
    lambda x: (x.shape, x.dtype), fresh
  )
  for name, inputs in lora.MATRICES.items():
    stored, scale = small["layers"][name], small["layers"][f"{name}_scale"]
    w = np.asarray(params["layers"][name])
    assert stored.dtype == np.int8 and scale.shape[: 1 + inputs] == (2, *(1,) * inputs)
    step = np.abs(w).max(tuple(range(1, 1 + inputs)), keepdims=True) / 127
    assert (np.abs(stored * np.asarray(scale) - w) <= 0.52 * step).all()
  layers = {
    name: x * small["layers"][f"{name}_scale"] if name in lora.MATRICES else x
    for name, x in small["layers"].items()
    if not name.endswith("_scale")
  }
  expected = hidden(plain, dict(params, layers=layers))
  np.testing.assert_allclose(hidden(model, small), expected, atol=2e-5)
  assert 0 < np.abs(hidden(model, small) - hidden(plain, params)).max() < 0.2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Three steps of a student with factors from a teacher with int8 weights, both from folders."""
  folder = tmp_path_factory.mktemp("lora")
  config = config_lib.load("experiments/llm/kd.py:smoke")
  for name in ("teacher", "student"):
    model = transformer.make(config.models[name])
    params = jax.device_get(model.init(jax.random.key(len(name))))
    pretrained.save(folder / name, params, config.models[name], "float32")
    config.pretrained[name] = str(folder / name)
  config.models.teacher.weights = "int8"
  config.models.student.lora_rank = 2
  config.optim.weight_decay = 0.1
  config.steps = config.save_every = 3
  config.ema = (("constant", 0.5),)
  workdir = folder / "run"
  results = train.run(config, workdir)
  return config, workdir, results


def test_a_run_learns_factors_and_holds_the_rest(run, tmp_path):
  config, workdir, results = run
  assert 0 < results["language/teacher_kl"] < 0.01
  before = pretrained.load(config.pretrained.student)
  for tree in ("student", "ema.constant_0.5"):
    export.export(workdir, tmp_path / tree, tree=tree, dtype="float32")
    after = pretrained.load(str(tmp_path / tree))
    assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, before)
    np.testing.assert_array_equal(after["embed"]["tokens"], before["embed"]["tokens"])
    assert np.abs(after["layers"]["down"] - before["layers"]["down"]).max() > 1e-5


def test_the_command_writes_a_hugging_face_folder(run, tmp_path, capsys):
  _, workdir, _ = run
  export.export(workdir, tmp_path / "ours", tree="student", dtype="float32")
  options = ["--format", "huggingface", "--dtype", "float32"]
  assert export.main(["--workdir", str(workdir), "--out", str(tmp_path / "theirs"), *options]) == 0
  assert "student of step 3" in capsys.readouterr().out
  stored = json.loads((tmp_path / "theirs/config.json").read_text())
  assert stored["model_type"] == "llama" and stored["hidden_size"] == 16
  ours, theirs = (
    pretrained.read(pretrained.load(str(tmp_path / name))) for name in ("ours", "theirs")
  )
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_optimiser_remembers_factors_alone(run):
  config, _, _ = run
  mesh = make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    program = train.build(config, mesh)
    state, frozen = program.init(program.keys[0], program.pretrained)
    moments = [x for x in jax.tree.leaves(state["opt"]) if x.ndim]
    factors = [
      x for path, x in jax.tree_util.tree_leaves_with_path(state["student"]) if lora.is_factor(path)
    ]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in factors)
    assert frozen["teacher"]["layers"]["up"].dtype == np.int8
    held = jax.device_get(state["student"])
    batch = put_batch(next(iter(method.load("data", "text").make(config))), mesh)
    state, _ = program.step(state, frozen, batch, program.keys[1])
  for path, x in jax.tree_util.tree_leaves_with_path(jax.device_get(state["student"])):
    if not lora.is_factor(path):
      np.testing.assert_array_equal(x, dict(jax.tree_util.tree_leaves_with_path(held))[path])


def test_mistakes_are_told(run):
  config = run[0].copy_and_resolve_references()
  config.models.student.weights = "int8"
  config.models.student.lora_rank = 0
  with pytest.raises(ConfigError, match="a student learns"):
    train.build(config, make_mesh(config.mesh))
  with pytest.raises(ValueError, match="lora_rank needs weights 'float'"):
    build(lora_rank=2, weights="int8")
