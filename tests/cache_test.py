"""The writer: killed and continued, in several processes, from the command line."""

import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from distill_jax import cache as writer
from distill_jax import config as config_lib
from distill_jax.config import ROOT, ConfigError
from distill_jax.data import cached, manifest
from distill_jax.models import pretrained
from distill_jax.models import student as student_lib

ARGS = "experiments/llm/cached_kd.py:smoke"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
  """36 rows in 12 shards."""
  root = tmp_path_factory.mktemp("cache")
  (root / "texts").mkdir()
  (root / "texts/0.txt").write_text("a teacher sees it once, " * 24)
  (root / "texts/58.txt").write_text("held out, " * 20)
  given = dict(source=root / "texts", seq_len=16)
  given |= {"cache.rows": 0, "cache.rows_per_shard": 3}
  return [f"cache_dir={root / 'cache'}", *(f"data.{k}={v}" for k, v in given.items())]


def experiment(keys, folder, *more):
  return config_lib.load(ARGS, (*keys, f"data.cache.folder={folder}", *more))


def contents(folder):
  return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def straight(keys, tmp_path_factory):
  """What one undisturbed process leaves."""
  folder = tmp_path_factory.mktemp("straight") / "cache"
  config = experiment(keys, folder)
  writer.write(config, manifest.of(config))
  found = contents(folder)
  assert sorted(found) == [*(f"{i:05}.arrayrecord" for i in range(12)), "manifest.json"]
  return found


def command(keys, folder, *more):
  overrides = [f"--config.{key}" for key in keys]
  return ["--config", ARGS, "--out", str(folder), *overrides, *more]


KILLED = """
import os, signal, sys
from distill_jax import cache

shards = []

def sync(path):
  if path.name.endswith(".tmp") and "arrayrecord" in path.name:
    shards.append(path)
    if len(shards) == 4:  # written, but not yet under its name
      os.kill(os.getpid(), signal.SIGKILL)

cache._sync = sync
cache.main(sys.argv[1:])
"""


def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(keys, straight, tmp_path):
  folder = tmp_path / "cache"
  argv = [sys.executable, "-c", KILLED, *command(keys, folder)]
  process = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
  assert process.returncode == -signal.SIGKILL, process.stderr
  done = contents(folder)
  whole = [*(f"{i:05}.arrayrecord" for i in range(3)), "manifest.json"]
  assert sorted(name for name in done if not name.endswith(".tmp")) == whole
  assert len(done) == 5 and all(straight[name] == done[name] for name in whole)
  config = experiment(keys, folder)
  writer.write(config, manifest.of(config))
  assert {k: v for k, v in contents(folder).items() if not k.endswith(".tmp")} == straight
  next(iter(cached.make(config)))


def test_two_processes_write_what_one_does(keys, straight, tmp_path, capsys):
  config = experiment(keys, tmp_path / "cache")
  cache = manifest.of(config)
  writer.write(config, cache, 1, 2)
  assert [file.exists() for file in cache.files] == [False, True] * 6
  assert "shard 6/6" in capsys.readouterr().out
  writer.write(config, cache, 0, 2)
  assert contents(tmp_path / "cache") == straight


def test_the_command_tells_what_is_there(keys, tmp_path, capsys):
  argv = command(keys, tmp_path / "cache", "--process", "0", "--processes", "3")
  assert writer.main(argv) == 0
  out = [x for x in capsys.readouterr().out.splitlines() if "are padding" not in x]
  assert out[0].startswith("cache cache  shard 1/4  ") and out[0].endswith(" s left")
  size = 12 + 9 + 12  # 8 ids of 9 bits, 8 log-probabilities of 12
  rest = f"36 rows, {size} bytes per token, 8 of 12 shards left to other processes"
  assert out[-1] == f"{tmp_path / 'cache'}: {rest}"
  assert writer.main(argv) == 0
  assert len(capsys.readouterr().out.splitlines()) == 1  # nothing to do


@pytest.mark.parametrize(
  "more, words",
  [
    (("--process", "2", "--processes", "2"), "--process 2 is not one of --processes 2"),
    (("--config.data.cache.k=300",), "data.cache.k 300 is not between 1"),
    (("--config.mesh.data=3",), "mesh: data x fsdp x tensor"),
  ],
)
def test_mistakes_are_told_in_one_line(keys, tmp_path, capsys, more, words):
  assert writer.main(command(keys, tmp_path / "cache", *more)) == 2
  error = capsys.readouterr().err
  assert error.startswith(f"error: {words}") and error.count("\n") == 1


def test_a_folder_of_another_cache_is_left_alone(keys, straight, tmp_path):
  config = experiment(keys, tmp_path / "cache")
  cache = manifest.of(config)
  cache.folder.mkdir()
  (cache.folder / "manifest.json").write_bytes(straight["manifest.json"])
  config.data.cache.k = 5
  with pytest.raises(ConfigError, match="k is 8, but 5"):
    writer.write(config, manifest.of(config))
  assert sorted(contents(cache.folder)) == ["manifest.json"]


def test_a_disk_that_is_full_leaves_no_half_shard(keys, tmp_path, monkeypatch):
  config = experiment(keys, tmp_path / "cache")

  def full(path):
    if path.suffix == ".tmp" and "arrayrecord" in path.name:
      raise OSError("No space left on device")

  monkeypatch.setattr(writer, "_sync", full)
  with pytest.raises(OSError, match="No space"):
    writer.write(config, manifest.of(config))
  assert sorted(contents(tmp_path / "cache")) == ["manifest.json"]


def test_weights_are_told_apart_by_their_bytes(keys, tmp_path):
  config = experiment(keys, tmp_path / "cache")
  arch, digests = config.models.teacher, []
  for seed in (0, 1):
    params = student_lib.model(config, "teacher").init(jax.random.key(seed))
    pretrained.save(tmp_path / "teacher", params, arch, "float32")
    config.pretrained.teacher = str(tmp_path / "teacher")
    digests.append(manifest.of(config).fields["weights"])
  config.seed = 5  # of no matter to weights that are loaded
  digests.append(manifest.of(config).fields["weights"])
  assert len(set(digests)) == 2 and digests[1] == digests[2]
  cached.make(config)
  batch = next(iter(cached.make(config)))
  model = student_lib.model(config, "teacher")
  logits = np.asarray(model.logits(params, model.hidden(params, batch["tokens"][:, :-1])))
  np.testing.assert_array_equal(batch["teacher_ids"][..., 0], logits.argmax(-1))
