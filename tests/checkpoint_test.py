"""Checkpoints: bit-equal round trips, and what happens after every kind of damage."""

import gc
import logging
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding

from distill_jax.checkpoint import Checkpoints


def place(tree, devices=8, axes=("data", "fsdp")):
  """On a mesh, first axes sharded where they divide."""
  grid = np.array(jax.devices()[:devices]).reshape(-1, min(2, devices))
  mesh = Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

  def put(x):
    spec = jax.P(axes) if x.ndim and x.shape[0] % devices == 0 else jax.P()
    return jax.device_put(x, NamedSharding(mesh, spec))

  return jax.tree.map(put, tree)


def make_state(step, width=32):
  """Host arrays, so that nothing is compiled."""
  rng = np.random.default_rng(step)
  params = {
    "w": rng.normal(size=(64, width)).astype("f4"),
    "half": rng.normal(size=(16, 3)).astype(jnp.bfloat16),
  }
  counts = {"bytes": np.arange(7, dtype="u1"), "steps": np.array([step, -step], "i4")}
  adam = optax.ScaleByAdamState(np.int32(step), params, params)
  opt = (optax.EmptyState(), adam, optax.MaskedState((None, optax.EmptyState())))
  return {"step": np.int32(step), "student": params, "opt": opt, "counts": counts, "ema": (params,)}


def make_data(moved=0):
  data = iter(grain.MapDataset.range(100).seed(0).shuffle().repeat().batch(4).to_iter_dataset())
  for _ in range(moved):
    next(data)
  return data


def abstract(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def restore(directory, like=None, data=None):
  data = data or make_data()
  with Checkpoints(directory, every=1, keep=2) as checkpoints:
    return checkpoints.restore(abstract(like or place(make_state(0))), data), data


def assert_is_step(step, state, data):
  expected = make_state(step)
  assert jax.tree.structure(state) == jax.tree.structure(expected)
  for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), y)
  assert data.get_state() == make_data(step).get_state()


def steps_in(directory):
  return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal())


def reported(caplog):
  """Our own lines, not orbax's, at the default level."""
  records = [r for r in caplog.records if pathlib.Path(r.pathname).name == "checkpoint.py"]
  return [r.getMessage() for r in records if r.levelno >= logging.WARNING]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
  directory = tmp_path_factory.mktemp("original")
  with Checkpoints(directory, every=1, keep=2) as checkpoints:
    for step in (1, 2):
      assert checkpoints.save(step, place(make_state(step)), make_data(step))
  return directory


@pytest.fixture
def saved(original, tmp_path):
  """A directory with steps 1 and 2, free to be damaged."""
  return shutil.copytree(original, tmp_path / "saved")


def test_round_trip_is_bit_equal_and_resumes_the_data(saved, caplog):
  state, data = restore(saved)
  assert_is_step(2, state, data)
  like = place(make_state(0))
  assert jax.tree.all(jax.tree.map(lambda x, y: x.sharding == y.sharding, state, like))
  np.testing.assert_array_equal(next(data), next(make_data(2)))
  assert not reported(caplog)


def test_saves_when_due_and_not_twice(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # a relative directory
  state, data = place(make_state(1)), make_data()
  with Checkpoints("run/checkpoints", every=3, keep=9) as checkpoints:
    assert checkpoints.restore(abstract(state), data) is None
    assert [s for s in range(1, 8) if checkpoints.save(s, state, data)] == [3, 6]
    assert not checkpoints.save(6, state, data, force=True)
    assert checkpoints.save(7, state, data, force=True)
  with Checkpoints("run/checkpoints", every=7, keep=9) as checkpoints:
    checkpoints.restore(abstract(state), data)
    assert not checkpoints.save(7, state, data)
  assert steps_in(tmp_path / "run/checkpoints") == [3, 6, 7]


def test_state_may_be_donated_and_the_iterator_moved_right_after_save(tmp_path):
  host = {"step": np.int32(1), "w": np.arange(1 << 20, dtype="f4")}
  state, data = place(host), make_data(5)
  like, layout = abstract(state), jax.tree.map(lambda x: x.sharding, state)
  step = lambda s: jax.tree.map(lambda x: -x - 1, s)  # noqa: E731
  step = jax.jit(step, donate_argnums=0, out_shardings=layout)
  step(place(host))  # compiles
  with Checkpoints(tmp_path, every=1, keep=1) as checkpoints:
    checkpoints.save(1, state, data)
    for _ in range(3):
      state = jax.block_until_ready(step(state))
      next(data)
    data = make_data()
    found = checkpoints.restore(like, data)
  jax.tree.map(np.testing.assert_array_equal, found, host)
  assert data.get_state() == make_data(5).get_state()


def test_restores_on_other_meshes_and_shardings(tmp_path):
  found = place(make_state(1))
  for devices, axes in ((4, "fsdp"), (1, "data"), (8, ("fsdp", "data"))):
    with Checkpoints(tmp_path / str(devices), every=1, keep=1) as checkpoints:
      checkpoints.save(1, found, make_data(1))
    found, data = restore(tmp_path / str(devices), place(make_state(0), devices, axes))
    assert_is_step(1, found, data)
    assert len(found["student"]["w"].sharding.device_set) == devices


@pytest.mark.parametrize("mode, best", [("min", [2, 4]), ("max", [1, 5])])
def test_keeps_the_latest_and_the_best_also_across_runs(tmp_path, mode, best):
  losses = [0.9, 0.1, float("nan"), 0.2, 0.8, 0.5, None, 0.5]
  state, keep = place(make_state(1)), dict(keep=2, keep_best=2)
  for steps in (range(1, 5), range(5, 9)):
    options = dict(every=1, best_metric="eval/loss", best_mode=mode, **keep)
    with Checkpoints(tmp_path, **options) as checkpoints:
      checkpoints.restore(abstract(state), make_data())
      for step in steps:
        loss = losses[step - 1]
        metrics = None if loss is None else {"eval/loss": loss, "other": 0.0}
        checkpoints.save(step, state, make_data(), metrics)
  assert steps_in(tmp_path) == [*best, 7, 8]


def test_bad_options(tmp_path):
  for bad in (dict(every=0, keep=1), dict(every=1, keep=0), dict(every=1, keep=1, best_mode="low")):
    with pytest.raises(ValueError, match="every and keep must be at least 1"):
      Checkpoints(tmp_path, **bad)
  checkpoints = Checkpoints(tmp_path, every=1, keep=1, keep_best=1, best_metric="los")
  with pytest.raises(ValueError, match=r"best_metric 'los' is not one of \['loss'\]"):
    checkpoints.save(1, place(make_state(1)), make_data(), {"loss": 1.0})


def flip(path):
  content, rng = bytearray(path.read_bytes()), random.Random(path.name)
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  path.write_bytes(content)


DAMAGES = {
  "truncate": lambda path: os.truncate(path, path.stat().st_size // 2),
  "empty": lambda path: os.truncate(path, 0),
  "zero": lambda path: path.write_bytes(bytes(path.stat().st_size)),
  "flip": flip,
  "delete": lambda path: shutil.rmtree(path) if path.is_dir() else path.unlink(),
}


def cases(checkpoint):
  """(damage, relative path): each file in each way, and each folder deleted."""
  for path in sorted(checkpoint.rglob("*")):
    name = str(path.relative_to(checkpoint))
    if path.is_dir() or not path.stat().st_size:
      yield "delete", name
    elif not name.startswith("checksums"):
      yield from ((damage, name) for damage in DAMAGES)
  yield from (("truncate", "checksums.0.json"), ("empty", "checksums.0.json"))


def test_every_damage_is_reported_and_the_one_before_used(saved, caplog):
  """Steps 3, 4, ... are one broken copy each, so that a single restore falls through them all."""
  broken = dict(enumerate(cases(saved / "2"), 3))
  for step, (damage, name) in broken.items():
    shutil.copytree(saved / "2", saved / str(step))
    DAMAGES[damage](saved / str(step) / name)
  (saved / "999").mkdir()
  assert_is_step(2, *restore(saved))
  lines = reported(caplog)
  for step, line in zip([999, *sorted(broken)[::-1]], lines, strict=True):
    (aside,) = saved.glob(f"{step}.broken-*")
    assert line.startswith(f"{saved / str(step)} is broken: "), broken.get(step)
    assert aside.name in line and "\n" not in line
  assert steps_in(saved) == [1, 2] and len(broken) > 50


def test_a_broken_step_can_be_saved_again(saved):
  DAMAGES["truncate"](saved / "2/state/manifest.ocdbt")
  with Checkpoints(saved, every=1, keep=1) as checkpoints:
    state = checkpoints.restore(abstract(place(make_state(0))), make_data())
    assert checkpoints.save(2, state, make_data(1))
  assert steps_in(saved) == [2] and len(list(saved.glob("2.broken-*"))) == 1
  assert_is_step(1, *restore(saved))


def test_all_broken(saved, caplog):
  for step in "12":
    flip(saved / step / "data/process_0-of-1.json")
  state, data = restore(saved)
  assert state is None and len(reported(caplog)) == 2
  assert data.get_state() == make_data().get_state()


# A failed read of an array leaves coroutines behind in orbax, and their collection is no warning of
# ours: hence also the gc.collect().
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["none", "truncate", "zero", "delete"])
def test_without_checksums_orbax_judges(saved, caplog, damage):
  (saved / "2/checksums.0.json").unlink()
  (file,) = (saved / "2/state/ocdbt.process_0/d").iterdir()
  DAMAGES.get(damage, str)(file)
  assert_is_step(2 if damage == "none" else 1, *restore(saved))
  gc.collect()
  (line,) = reported(caplog)
  assert ("not verified" if damage == "none" else "is broken") in line


@pytest.mark.parametrize("verified", [True, False])
def test_another_config_is_an_error_not_damage(saved, verified):
  state = make_state(0)
  half = {k: v.astype(jnp.bfloat16) for k, v in state["counts"].items()}
  momentum = (optax.TraceState(state["student"]), optax.EmptyState())
  if not verified:
    (saved / "2/checksums.0.json").unlink()
  for other, message in (
    (make_state(0, width=64), r"config: ema/0/w is float32\[64, 32\] in the .*, float32\[64, 64\]"),
    (state | {"counts": half}, r"counts/bytes is uint8\[7\] in the checkpoint, bfloat16\[7\] in"),
    (state | {"fake": np.zeros(3)}, r"fake is absent in the checkpoint, float32\[3\] in this run"),
    (state | {"counts": {}}, r"bytes is uint8\[7\] in the checkpoint, absent in this run. Use ano"),
    (state | {"opt": momentum}, r"opt/0/trace/half is absent in the checkpoint, bfloat16\[16, 3\]"),
  ):
    with pytest.raises(ValueError, match=message):
      restore(saved, place(other))
  assert steps_in(saved) == [1, 2]


def test_another_data_pipeline_is_an_error_not_damage(saved):
  sets = [grain.MapDataset.range(9).repeat().to_iter_dataset() for _ in range(2)]
  with pytest.raises(ValueError, match=r"2 is intact but cannot be restored: .* another --workdir"):
    restore(saved, data=iter(grain.IterDataset.mix(sets)))
  assert steps_in(saved) == [1, 2]


def test_an_error_in_the_background_is_raised_once(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path, every=1, keep=1)
  monkeypatch.setattr("distill_jax.checkpoint._checksum", lambda path: 1 // 0)
  checkpoints.save(1, place(make_state(1)), make_data())
  with pytest.raises(ZeroDivisionError):
    checkpoints.save(2, place(make_state(1)), make_data())
  checkpoints.wait()


def python(code, *args, devices=1):
  flags = f"--xla_force_host_platform_device_count={devices}"
  env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "error"}
  env["PYTHONPATH"] = os.pathsep.join(sys.path)
  command, pipe = [sys.executable, "-c", code, *map(str, args)], subprocess.PIPE
  return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)


KILLED = """
import os, pathlib, signal, sys, time
import grain, jax.numpy as jnp, numpy as np
from distill_jax import checkpoint

directory, moment = pathlib.Path(sys.argv[1]), sys.argv[2]
data = iter(grain.MapDataset.range(100).repeat().to_iter_dataset())
checkpoints = checkpoint.Checkpoints(directory, every=1, keep=2)
noise = np.random.default_rng(0).normal(size=1 << 20).astype("f4")

def save(step):
  next(data)
  checkpoints.save(step, {"step": jnp.int32(step), "w": jnp.asarray(noise + step)}, data)

def hang(*args):
  time.sleep(1000)

save(1)
checkpoints.wait()
awaited = directory
if moment == "before the rename":
  os.rename = os.replace = hang
  awaited = directory / "2.orbax-checkpoint-tmp/commit_success.txt"
if moment == "before the checksums":
  checkpoint._checksum = hang
  awaited = directory / "2"
save(2)
while not awaited.exists():
  time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_in_the_middle_of_a_save(tmp_path, caplog):
  moments = {"at once": (1, 2), "before the rename": (1,), "before the checksums": (2,)}
  children = [python(KILLED, tmp_path / moment, moment) for moment in moments]
  noise = np.random.default_rng(0).normal(size=1 << 20).astype("f4")
  like = abstract(place({"step": np.int32(0), "w": noise}))
  for (moment, possible), child in zip(moments.items(), children, strict=True):
    _, errors = child.communicate(timeout=300)
    assert child.returncode == -signal.SIGKILL, errors
    directory, unfinished = tmp_path / moment, tmp_path / moment / "2.orbax-checkpoint-tmp"
    assert unfinished.exists() or moment != "before the rename"
    data = iter(grain.MapDataset.range(100).repeat().to_iter_dataset())
    with Checkpoints(directory, every=1, keep=2) as checkpoints:
      state = checkpoints.restore(like, data)
      step = int(state["step"])
      np.testing.assert_array_equal(state["w"], noise + step)
      assert step in possible and next(data) == step
      checkpoints.save(step + 1, state, data)
    assert steps_in(directory) == [step, step + 1] and not unfinished.exists()
  assert not [line for line in reported(caplog) if "not verified" not in line]


TWO_PROCESSES = """
import pathlib, sys
import grain, jax, jax.numpy as jnp, numpy as np
from jax.experimental.multihost_utils import sync_global_devices
from distill_jax.checkpoint import Checkpoints

directory, port, index = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, index)
mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
layout = {"step": jax.NamedSharding(mesh, jax.P()), "w": jax.NamedSharding(mesh, jax.P("fsdp"))}
make = jax.jit(lambda i: {"step": i, "w": jnp.arange(4096.0) * i}, out_shardings=layout)
like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make(0))
new = lambda: iter(grain.MapDataset.range(index, 100, 2).to_iter_dataset())

data = new()
with Checkpoints(directory, every=1, keep=2, keep_best=1, best_metric="loss") as checkpoints:
  assert checkpoints.restore(like, data) is None
  for step in (1, 2, 3, 4):
    next(data)
    checkpoints.save(step, make(step), data, {"loss": float(step)})
sync_global_devices("saved")
if index == 0:
  assert sorted(p.name for p in directory.iterdir()) == ["1", "3", "4"]
  assert len(list(directory.glob("4/checksums.?.json"))) == 2
  file = max(directory.glob("4/state/ocdbt.process_1/d/*"), key=lambda p: p.stat().st_size)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)
sync_global_devices("damaged")
data = new()
with Checkpoints(directory, every=1, keep=2) as checkpoints:
  state = checkpoints.restore(like, data)
  assert int(state["step"]) == 3, state["step"]
  for shard in state["w"].addressable_shards:
    np.testing.assert_array_equal(shard.data, np.arange(4096.0, dtype="f4")[shard.index] * 3)
  assert next(data) == index + 2 * 3
  checkpoints.save(4, state, data)
print("done")
"""


def test_two_processes(tmp_path):
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  children = [python(TWO_PROCESSES, tmp_path, port, i, devices=2) for i in range(2)]
  for out, errors in [child.communicate(timeout=300) for child in children]:
    assert "done" in out, errors
  assert steps_in(tmp_path) == [3, 4]


def test_import_of_the_package_is_lazy():
  child = python("import sys, distill_jax; assert not {'jax', 'orbax', 'grain'} & set(sys.modules)")
  assert child.communicate(timeout=300)[1] == "" and child.returncode == 0
