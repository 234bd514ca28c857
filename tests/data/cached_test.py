"""Rows with cached signals: those of the live teacher, in the order of text.py, or a refusal."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import config as config_lib
from distill_jax.config import ConfigError
from distill_jax.data import cached, completions, manifest, text
from distill_jax.losses.log_probs import log_softmax
from distill_jax.mesh import make_mesh
from distill_jax.models import student as student_lib

ROWS = 37  # two whole shards of 16 and one of 5, none a multiple of the batch


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  root = tmp_path_factory.mktemp("cached") / "texts"
  root.mkdir()
  (root / "0.txt").write_text("".join(f"{i:03} times two is {2 * i}. " for i in range(31))[:592])
  (root / "58.txt").write_text("held out, " * 20)
  return root


def experiment(source, *overrides):
  keys = dict(source=source, seq_len=16)
  config = config_lib.load(
    "experiments/llm/cached_kd.py:smoke",
    (
      *(f"data.{key}={value}" for key, value in keys.items()),
      f"cache_dir={source.parent / 'cache'}",
      "data.cache.rows=0",
      *overrides,
    ),
  )
  return config


@pytest.fixture(scope="module")
def written(source):
  """A folder with the cache, which `make` has written."""
  config = experiment(source, f"data.cache.folder={source.parent / 'written'}")
  cached.make(config)
  return source.parent / "written"


@pytest.fixture
def copied(source, written, tmp_path):
  """The same, to be damaged, and its config."""
  folder = tmp_path / "copied"
  shutil.copytree(written, folder)
  return experiment(source, f"data.cache.folder={folder}")


def live(config, tokens, **batch):
  """log-probabilities [B, T, V] of the teacher that training with this config begins with."""
  model, params = student_lib.model(config, "teacher"), frozen(config)
  batch = dict(tokens=jnp.asarray(tokens), **batch)
  hidden = jax.jit(functools.partial(student_lib.hidden, model))(params, batch)
  return np.asarray(log_softmax(model.logits(params, hidden)))


def frozen(config):
  init = student_lib.init(config, optax.identity())
  key = jax.random.split(jax.random.key(config.seed))[0]
  return jax.jit(lambda: init(key, {})[1]["teacher"])()


def one_line(error) -> str:
  assert "\n" not in str(error.value)
  return str(error.value)


def test_rows_and_order_are_those_of_text(source, written):
  config = experiment(source, f"data.cache.folder={written}")
  assert manifest.of(config).rows == ROWS
  plain, kept = iter(text.make(config)), iter(cached.make(config))
  for _ in range(6):  # more than an epoch
    a, b = next(plain), next(kept)
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """Prompts and completions; the words after the keys of `experiment` are those of their cache."""
  root = tmp_path_factory.mktemp("pairs")
  lines = [dict(prompt=f"{i} + {i} =", completion=f" {2 * i}") for i in range(40)]
  (root / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return root / "sums.jsonl"


def test_packed_completions_keep_their_mask_and_segments(pairs):
  config = experiment(pairs, "data.cache.of=completions", "data.seq_len=32")
  plain, kept = iter(completions.make(config)), iter(cached.make(config))
  for _ in range(6):
    a, b = next(plain), next(kept)
    assert a["segments"].max() > 1 and not a["mask"].all()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])
  spec = cached.spec(config)
  assert {k: (v.shape, v.dtype) for k, v in b.items()} == {
    k: (v.shape, v.dtype) for k, v in spec.items()
  }


def test_the_teacher_of_packed_completions_sees_each_alone(pairs):
  config = experiment(pairs, "data.cache.of=completions", "data.seq_len=32")
  batch = next(iter(cached.make(config)))
  apart = live(config, batch["tokens"], segments=batch["segments"])
  mixed = live(config, batch["tokens"])
  values = np.take_along_axis(apart, batch["teacher_ids"], -1)
  np.testing.assert_allclose(batch["teacher_log_probs"], values, atol=1e-3)
  others = np.take_along_axis(mixed, batch["teacher_ids"], -1)
  assert np.abs(others - values).max() > 0.01


def test_rows_of_another_kind_are_refused(source):
  with pytest.raises(ConfigError, match=r"data.cache.of 'chats' is not text or completions"):
    cached.make(experiment(source, "data.cache.of=chats"))


def test_batches_have_the_shapes_of_spec(source, written):
  config = experiment(source, f"data.cache.folder={written}")
  batch, spec = next(iter(cached.make(config))), cached.spec(config)
  assert set(batch) == set(spec)
  for name, leaf in spec.items():
    assert (batch[name].shape, batch[name].dtype) == (leaf.shape, leaf.dtype), name


def test_signals_are_those_of_the_live_teacher(source, written):
  config = experiment(source, f"data.cache.folder={written}")
  batch = next(iter(cached.make(config)))
  exact = live(config, batch["tokens"])
  values = np.take_along_axis(exact, batch["teacher_ids"], -1)
  np.testing.assert_allclose(batch["teacher_log_probs"], values, atol=1e-3)
  np.testing.assert_allclose(values, np.sort(exact, -1)[..., ::-1][..., :8], atol=1e-6)


def test_hidden_states_and_draws(source):
  keys = ("data.cache.hidden=float16", "data.cache.kind=sampled", "data.cache.k=64")
  config = experiment(source, *keys)
  batch = next(iter(cached.make(config)))
  model = student_lib.model(config, "teacher")
  hidden = jax.jit(model.hidden)(frozen(config), batch["tokens"][:, :-1])
  np.testing.assert_allclose(batch["teacher_hidden"], hidden, atol=2e-3)
  assert batch["teacher_ids"].max() < 257
  np.testing.assert_allclose(batch["teacher_weights"].sum(-1), 1, atol=1e-6)
  exact = np.exp(live(config, batch["tokens"]))  # near 1/257 each: 8192 draws, 32 of each id
  seen = np.bincount(batch["teacher_ids"].ravel(), batch["teacher_weights"].ravel(), 257)
  expected = exact.sum((0, 1))
  deviation = np.sqrt(expected[:257] * 64 / 64**2)
  assert (np.abs(seen - expected[:257]) < 5 * deviation).all()
  assert len({tuple(row) for row in batch["teacher_ids"].reshape(-1, 64)}) == 128  # all differ


def test_some_rows_are_spread_over_the_text(source):
  config = experiment(source, "data.cache.rows=5")
  cache = manifest.of(config)
  table = [cache.example(i)["tokens"] for i in range(cache.rows)]
  whole = text.windows(text.token_ids(config, "train"), 16)
  np.testing.assert_array_equal(table, whole[[0, 9, 18, 27, 36]])


def test_a_missing_shard_is_written_again(copied, capsys):
  file = manifest.of(copied).files[1]
  content = file.read_bytes()
  file.unlink()
  cached.make(copied)
  assert file.read_bytes() == content
  assert "37 rows" in capsys.readouterr().out
  cached.make(copied)
  assert capsys.readouterr().out == ""


def test_several_processes_do_not_write(copied, monkeypatch):
  manifest.of(copied).files[1].unlink()
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ConfigError) as error:
    cached.make(copied)
  assert "run python -m distill_jax.cache first" in one_line(error)


@pytest.mark.parametrize(
  "change, words",
  [
    ("data.cache.k=7", "k is 8, but 7 for this config: set data.cache.k=8"),
    ("data.cache.bits=10", "bits is 12, but 10 for this config: set data.cache.bits=12"),
    ("data.cache.kind=sampled", "kind is 'top_k', but 'sampled'"),
    ("data.cache.hidden=float16", "hidden is '', but 'float16'"),
    ("data.cache.rows=20", "rows is 37, but 20"),
    ("data.cache.rows_per_shard=8", "rows_per_shard is 16, but 8"),
    ("data.seq_len=8", "seq_len is 16, but 8 for this config: set data.seq_len=16"),
    ("seed=1", "weights is '"),
    ("models.teacher.layers=1", "architecture is '"),
    ("models.teacher.dtype=bfloat16", "dtype is 'float32, parameters float32', but 'bfloat16, "),
  ],
)
def test_another_config_is_refused_by_the_name_of_the_field(source, written, change, words):
  config = experiment(source, f"data.cache.folder={written}", change)
  with pytest.raises(ConfigError) as error:
    cached.make(config)
  message = one_line(error)
  assert message.startswith(f"{written / 'manifest.json'}: {words}")
  assert message.endswith("or name another data.cache.folder.")


def test_every_field_of_the_manifest_is_compared(copied):
  file = manifest.of(copied).folder / "manifest.json"
  fields = json.loads(file.read_text())
  assert set(fields) == set(manifest.of(copied).fields)
  for name in fields:
    for changed in (
      dict(fields, **{name: "other"}),
      {k: v for k, v in fields.items() if k != name},
    ):
      file.write_text(json.dumps(changed))
      with pytest.raises(ConfigError, match=f"manifest.json: {name} is "):
        cached.make(copied)


def test_another_text_is_refused(copied, source, tmp_path):
  other = tmp_path / "texts"
  other.mkdir()
  (other / "0.txt").write_text((source / "0.txt").read_text().replace("times", "Times"))
  copied.data.source = str(other)
  with pytest.raises(ConfigError, match=r"data is '.*the rows are others, set data.source"):
    cached.make(copied)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_a_damaged_manifest_is_told(copied, content):
  (manifest.of(copied).folder / "manifest.json").write_text(content)
  with pytest.raises(ConfigError) as error:
    cached.make(copied)
  assert "manifest.json is damaged" in one_line(error)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "garbage", "fewer"])
def test_a_damaged_shard_is_named(copied, damage):
  file, fewer = manifest.of(copied).files[::2]
  content = file.read_bytes()
  if damage == "flipped":
    middle = 300
    content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
  else:
    ways = dict(truncated=content[:-40_000], empty=b"", garbage=b"x" * 100_000)
    content = ways.get(damage, fewer.read_bytes())
  file.write_bytes(content)
  batches = iter(cached.make(copied))
  with pytest.raises(ConfigError) as error:
    for _ in range(5):
      next(batches)
  assert str(error.value).startswith(f"{file}, record ")
  assert one_line(error).endswith("Delete the file, to write it anew.")


@pytest.mark.parametrize(
  "change, words",
  [
    ("data.cache.kind=all", "data.cache.kind 'all' is not one of top_k, sampled."),
    ("data.cache.k=258", "data.cache.k 258 is not between 1 and the vocabulary, 257."),
    ("data.cache.bits=25", "data.cache.bits 25 is not between 2 and 24."),
    ("data.cache.hidden=float32", "data.cache.hidden 'float32' is not '', float16 or bfloat16."),
    ("data.cache.rows_per_shard=0", "data.cache.rows_per_shard is at least 1"),
  ],
)
def test_a_key_out_of_range_is_named(source, change, words):
  with pytest.raises(ConfigError) as error:
    cached.spec(experiment(source, change))
  assert one_line(error).startswith(words)


def test_a_run_on_one_device_writes_what_one_on_eight_does(source, written):
  folder = source.parent / "alone"
  config = experiment(source, f"data.cache.folder={folder}")
  config.mesh.data = 1
  with jax.set_mesh(make_mesh(config.mesh, jax.devices()[:1])):
    batches = [next(iter(cached.make(config)))]
  config.data.cache.folder = str(written)
  batches.append(next(iter(cached.make(config))))
  np.testing.assert_allclose(*(b["teacher_log_probs"] for b in batches), atol=1e-3)
