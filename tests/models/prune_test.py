"""Pruning where the answer is known: what does nothing can go."""

import jax
import numpy as np
import pytest

from distill_jax import prune as command
from distill_jax.config import ROOT
from distill_jax.models import pretrained, prune, transformer

GEMMA = dict(
  norm_plus_one=True,
  sandwich_norms=True,
  scale_embeddings=True,
  activation="gelu",
  qk_norm=True,
  sliding_window=3,
  sliding_pattern=2,
  rope_local_theta=50.0,
)
KINDS = dict(
  llama=dict(kv_heads=2, tie_embeddings=False),
  gemma=GEMMA,
  gpt2=dict(kind="gpt2", activation="gelu", max_positions=16),
)
TOKENS = np.random.default_rng(1).integers(0, 13, (2, 8))


def build(kind, **changes):
  arch = transformer.default_config()
  arch.update(vocab_size=13, layers=4, width=16, heads=4, kv_heads=4, head_dim=4, mlp_width=24)
  arch.update(KINDS[kind] | changes)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(transformer.make(arch).init, jax.random.key(0))

  def fill(path, x):
    center = 1.0 if "norm" in str(path) and "bias" not in str(path) else 0.0
    return (center * (not arch.norm_plus_one) + 0.3 * rng.normal(size=x.shape)).astype("f4")

  return arch, jax.tree_util.tree_map_with_path(fill, shapes)


def logits(arch, params):
  model = transformer.make(arch)
  return jax.jit(lambda p: model.logits(p, model.hidden(p, TOKENS)))(params)


def measure(arch, params):
  return prune.importance(transformer.make(arch), params, arch, TOKENS)


def shapes(arch):
  return jax.tree.map(np.shape, jax.eval_shape(transformer.make(arch).init, jax.random.key(0)))


def assert_the_same_but_smaller(before, after):
  np.testing.assert_allclose(logits(*after), logits(*before), atol=2e-5)
  assert jax.tree.map(np.shape, after[1]) == shapes(after[0])


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_do_nothing_go_first_and_change_nothing(kind):
  arch, params = build(kind)
  layers = params["layers"]
  for i in (1, 2):  # x + 0 + 0
    for name in ("output", "down", "output_bias", "down_bias"):
      if name in layers:
        layers[name][i] = 0
  influence = measure(arch, params).layers
  np.testing.assert_allclose(influence[1:3], 0, atol=1e-6)
  assert influence[0] > 0.01 and influence[3] > 0.01
  kept = prune.ranked(influence, 2)
  assert kept.tolist() == [0, 3]
  assert_the_same_but_smaller((arch, params), prune.keep_layers(params, arch, kept)[::-1])


def test_block_influence_is_the_mean_angle():
  """One layer that adds a fixed vector: the cosine is known."""
  arch, params = build("gpt2", layers=1)
  for name in ("output", "down"):
    params["layers"][name][:] = 0
  params["layers"]["output_bias"][:] = 0
  add = params["layers"]["down_bias"][0]
  x = params["embed"]["tokens"][TOKENS] + params["embed"]["positions"][:8]
  y = x + add
  cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
  np.testing.assert_allclose(measure(arch, params).layers[0], 1 - cosine.mean(), rtol=1e-5)


def test_a_layer_that_slid_still_slides():
  arch, params = build("gemma")  # of 0 to 3, 1 and 3 see all
  _, kept = prune.keep_layers(params, arch, [0, 1, 2])
  assert kept.layers == 3 and tuple(kept.full_layers) == (1,) and kept.sliding_window == 3
  _, kept = prune.keep_layers(params, arch, [1, 3])
  assert kept.sliding_window == 0 and kept.rope_local_theta == 0.0
  assert arch.layers == 4 and arch.sliding_pattern == 2  # as it was


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_units_that_do_nothing_go_first_and_change_nothing(kind):
  arch, params = build(kind)
  dead = np.stack([np.random.default_rng(i).permutation(24)[:8] for i in range(4)])
  for i in range(4):
    params["layers"]["up"][i][:, dead[i]] = 0  # gelu(0) = 0
    if kind == "gpt2":
      params["layers"]["up_bias"][i][dead[i]] = 0
  units = measure(arch, params).units
  assert (np.take_along_axis(np.asarray(units), dead, 1) == 0).all()
  smaller = prune.drop_units(params, arch, units, 16)[::-1]
  assert smaller[0].mlp_width == 16
  assert_the_same_but_smaller((arch, params), smaller)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_that_do_nothing_go_first_and_change_nothing(kind):
  """Queries of one key each for Gemma and GPT-2; for Llama one of the two queries of each key."""
  arch, params = build(kind)
  dead = np.array([[1, 2], [0, 3], [0, 2], [1, 3]])
  for i in range(4):
    params["layers"]["output"][i][dead[i]] = 0
  heads = np.ones((4, 4))
  np.put_along_axis(heads, dead, 0.0, 1)
  smaller = prune.drop_heads(params, arch, heads, 2)[::-1]
  assert smaller[0].heads == 2 and smaller[0].kv_heads == 2
  assert_the_same_but_smaller((arch, params), smaller)


def test_whole_groups_of_queries_go_where_one_key_less_is_asked_for():
  arch, params = build("llama", heads=6, kv_heads=3)
  params["layers"]["output"][:, 2:4] = 0  # both queries of the second key
  heads = np.ones((4, 6))
  heads[:, 2:4] = 0.1
  smaller = prune.drop_heads(params, arch, heads, 4)[::-1]
  assert smaller[0].kv_heads == 2
  assert_the_same_but_smaller((arch, params), smaller)
  with pytest.raises(ValueError, match="heads 5 is neither"):
    prune.drop_heads(params, arch, heads, 5)


def test_a_head_that_attends_to_nothing_has_no_importance():
  arch, params = build("llama")
  params["layers"]["value"][2][:, 1] = 0  # of queries 2 and 3
  heads = measure(arch, params).heads
  assert (heads[2, 2:] == 0).all() and (heads[2, :2] > 0).all() and (heads[1] > 0).all()


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_channels_that_are_always_zero_go_first_and_change_nothing(kind):
  """Norms divide by a mean over channels, so that weights must be scaled."""
  arch, params = build(kind, norm_eps=1e-12)
  dead, layers = [0, 5, 6, 15], params["layers"]
  params["embed"]["tokens"][:, dead] = 0
  layers["output"][..., dead] = layers["down"][..., dead] = 0
  channels = measure(arch, params).channels
  assert (np.asarray(channels)[dead] == 0).all()
  smaller = prune.drop_channels(params, arch, channels, 12)[::-1]
  assert smaller[0].width == 12
  assert_the_same_but_smaller((arch, params), smaller)


def test_no_more_can_be_kept_than_there_is():
  with pytest.raises(ValueError, match="5 of 4 can't be kept"):
    prune.ranked(np.ones(4), 5)


def test_the_command_writes_a_folder_that_is_a_model(tmp_path, capsys):
  for i in range(5):
    (tmp_path / f"{i}.txt").write_text("a sentence of a text that is long enough\n" * 100)
  teacher = str(ROOT / "distill_jax/assets/stdlib_teacher")
  given = ["--model", teacher, "--source", str(tmp_path), "--rows", "4"]
  out = ["--out", str(tmp_path / "small")]
  sizes = ["--layers", "3", "--mlp_width", "256", "--heads", "4", "--width", "96"]
  assert command.main([*given, *out, *sizes]) == 0
  assert "influence of the layers" in capsys.readouterr().out
  arch = pretrained.read_architecture(str(tmp_path / "small"))
  assert (arch.layers, arch.mlp_width, arch.heads, arch.width) == (3, 256, 4, 96)
  assert jax.tree.map(np.shape, pretrained.load(str(tmp_path / "small"))) == shapes(arch)
  assert (tmp_path / "small/tokenizer.json").is_file()
  for wrong, says in ((["--layers", "9"], "9 of 4 can't be kept"), (["--keep", "1,7"], "0 to 3")):
    assert command.main([*given, *out, *wrong]) == 2
    assert says in capsys.readouterr().err
