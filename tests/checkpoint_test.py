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
from jax.sharding import AxisType, NamedSharding

from distill_jax.checkpoint import Checkpoints


def mesh_of(count, split=2):
  devices = np.array(jax.devices()[:count]).reshape(-1, min(split, count))
  return jax.sharding.Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def place(tree, mesh, axes=("data", "fsdp")):
  """Shards first axes that divide."""

  def put(x):
    spec = jax.P(axes) if x.ndim and x.shape[0] % mesh.size == 0 else jax.P()
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


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def steps_in(directory):
  return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal())


def reported(caplog):
  """What a user reads: the project's own lines, at the default level."""
  lines = [r for r in caplog.records if r.levelno >= logging.WARNING]
  return [r.getMessage() for r in lines if pathlib.Path(r.pathname).name == "checkpoint.py"]


@pytest.fixture(scope="module")
def mesh():
  return mesh_of(8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, mesh):
  """A directory with steps 1 and 2, to be copied before it is damaged."""
  directory = tmp_path_factory.mktemp("saved")
  with Checkpoints(directory, every=1, keep=2) as checkpoints:
    for step in (1, 2):
      assert checkpoints.save(step, place(make_state(step), mesh), make_data(step))
  return directory


def restore(directory, mesh):
  data = make_data()
  with Checkpoints(directory, every=1, keep=2) as checkpoints:
    return checkpoints.restore(abstract(place(make_state(0), mesh)), data), data


def test_round_trip_is_bit_equal_and_resumes_the_data(saved, mesh, caplog):
  state, data = restore(saved, mesh)
  expected = place(make_state(2), mesh)
  assert_same(state, expected)
  same = jax.tree.map(lambda x, y: x.sharding == y.sharding, state, expected)
  assert jax.tree.all(same)
  np.testing.assert_array_equal(next(data), next(make_data(2)))
  assert not reported(caplog)


def test_nothing_to_restore(tmp_path, mesh):
  state, data = restore(tmp_path / "absent", mesh)
  assert state is None
  assert data.get_state() == make_data().get_state()


def test_relative_directory(tmp_path, mesh, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with Checkpoints("run/checkpoints", every=1, keep=1) as checkpoints:
    checkpoints.save(1, place(make_state(1), mesh), make_data())
  assert steps_in(tmp_path / "run/checkpoints") == [1]


def test_saves_when_due_and_not_twice(tmp_path, mesh):
  state, data = place(make_state(1), mesh), make_data()
  with Checkpoints(tmp_path, every=3, keep=9) as checkpoints:
    assert [s for s in range(1, 8) if checkpoints.save(s, state, data)] == [3, 6]
    assert not checkpoints.save(6, state, data, force=True)
    assert checkpoints.save(7, state, data, force=True)
    assert not checkpoints.save(7, state, data, force=True)
  with Checkpoints(tmp_path, every=1, keep=9) as checkpoints:
    checkpoints.restore(abstract(state), data)
    assert not checkpoints.save(7, state, data)


def test_arrays_may_be_donated_and_the_iterator_moved_right_after_save(tmp_path):
  mesh = mesh_of(8)
  size = 1 << 20
  host = {"step": np.int32(1), "w": np.arange(size, dtype="f4")}
  state = place(host, mesh)
  layout = jax.tree.map(lambda x: x.sharding, state)
  step = jax.jit(
    lambda s: jax.tree.map(lambda x: -x - 1, s), donate_argnums=0, out_shardings=layout
  )
  step(place(host, mesh))  # compiled before it counts
  like, data = abstract(state), make_data(5)
  with Checkpoints(tmp_path, every=1, keep=1) as checkpoints:
    checkpoints.save(1, state, data)
    for _ in range(3):
      state = step(state)
      next(data)
    jax.block_until_ready(state)
    data = make_data()
    found = checkpoints.restore(like, data)
  assert_same(found, host)
  np.testing.assert_array_equal(next(data), next(make_data(5)))


def test_restores_on_other_meshes_and_shardings(tmp_path):
  expected, path = make_state(1), [(4, "fsdp"), (1, "data"), (8, ("fsdp", "data"))]
  found = place(expected, mesh_of(8))
  for i, (devices, axes) in enumerate(path, 1):
    with Checkpoints(tmp_path, every=1, keep=1) as checkpoints:
      checkpoints.save(i, found, make_data(i))
    mesh, data = mesh_of(devices), make_data()
    with Checkpoints(tmp_path, every=1, keep=1) as checkpoints:
      found = checkpoints.restore(abstract(place(expected, mesh, axes)), data)
    assert_same(found, expected)
    assert len(found["student"]["w"].sharding.device_set) == devices
    assert data.get_state() == make_data(i).get_state()


@pytest.mark.parametrize("mode, best", [("min", [2, 4]), ("max", [1, 5])])
def test_keeps_the_latest_and_the_best_also_across_runs(tmp_path, mesh, mode, best):
  losses = [0.9, 0.1, float("nan"), 0.2, 0.8, 0.5, None, 0.5]
  state, options = place(make_state(1), mesh), dict(every=1, keep=2, keep_best=2)
  options |= dict(best_metric="eval/loss", best_mode=mode)
  for steps in (range(1, 5), range(5, 9)):
    with Checkpoints(tmp_path, **options) as checkpoints:
      checkpoints.restore(abstract(state), make_data())
      for step in steps:
        loss = losses[step - 1]
        metrics = None if loss is None else {"eval/loss": loss, "other": 0.0}
        checkpoints.save(step, state, make_data(), metrics)
  assert steps_in(tmp_path) == [*best, 7, 8]


def test_bad_options(tmp_path, mesh):
  for bad in (dict(every=0, keep=1), dict(every=1, keep=0), dict(every=1, keep=1, best_mode="low")):
    with pytest.raises(ValueError, match="every and keep must be at least 1"):
      Checkpoints(tmp_path, **bad)
  checkpoints = Checkpoints(tmp_path, every=1, keep=1, keep_best=1, best_metric="los")
  with pytest.raises(ValueError, match=r"best_metric 'los' is not one of \['loss'\]"):
    checkpoints.save(1, place(make_state(1), mesh), make_data(), {"loss": 1.0})


def truncate(path):
  os.truncate(path, path.stat().st_size // 2)


def empty(path):
  os.truncate(path, 0)


def zero(path):
  path.write_bytes(bytes(path.stat().st_size))


def flip(path):
  content = bytearray(path.read_bytes())
  rng = random.Random(path.name)
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  path.write_bytes(content)


def damages(saved):
  """(what, function of a checkpoint's path): each file in each way, and deletions of more."""
  step = saved / "2"
  for file in sorted(p.relative_to(step) for p in step.rglob("*") if p.is_file()):
    if not file.name.startswith("checksums"):
      size = (step / file).stat().st_size
      for damage in (truncate, empty, zero, flip, os.remove) if size else (os.remove,):
        yield f"{damage.__name__} {file}", lambda path, f=file, d=damage: d(path / f)
  for folder in sorted(p.relative_to(step) for p in step.rglob("*") if p.is_dir()):
    yield f"delete {folder}", lambda path, f=folder: shutil.rmtree(path / f)
  yield "empty checksums", lambda path: empty(path / "checksums.0.json")
  yield "empty directory", lambda path: (shutil.rmtree(path), path.mkdir())


def test_every_damage_is_reported_and_the_one_before_used(saved, mesh, tmp_path, caplog):
  """Steps 2, 3, ... are one broken copy each, so that a single restore falls through them all."""
  shutil.copytree(saved / "1", tmp_path / "1")
  cases = list(damages(saved))
  for step, (_, damage) in enumerate(cases, 2):
    shutil.copytree(saved / "2", tmp_path / str(step))
    damage(tmp_path / str(step))
  state, data = restore(tmp_path, mesh)
  assert_same(state, make_state(1))
  assert data.get_state() == make_data(1).get_state()
  lines = reported(caplog)[::-1]
  for step, ((what, _), line) in enumerate(zip(cases, lines, strict=True), 2):
    (aside,) = tmp_path.glob(f"{step}.broken-*")
    assert line.startswith(f"{tmp_path / str(step)} is broken: "), what
    assert aside.name in line and "\n" not in line
  assert steps_in(tmp_path) == [1] and len(cases) > 50


def test_a_broken_step_can_be_saved_again(saved, mesh, tmp_path):
  directory = tmp_path / "run"
  shutil.copytree(saved, directory)
  truncate(directory / "2/state/manifest.ocdbt")
  with Checkpoints(directory, every=1, keep=1) as checkpoints:
    state = checkpoints.restore(abstract(place(make_state(0), mesh)), make_data())
    assert checkpoints.save(2, state, make_data())
  assert steps_in(directory) == [2] and len(list(directory.glob("2.broken-*"))) == 1
  assert_same(restore(directory, mesh)[0], make_state(1))


def test_all_broken(saved, mesh, tmp_path, caplog):
  directory = tmp_path / "run"
  shutil.copytree(saved, directory)
  for step in (1, 2):
    (file,) = (directory / f"{step}/state/ocdbt.process_0/d").iterdir()
    flip(file)
  state, data = restore(directory, mesh)
  assert state is None and len(reported(caplog)) == 2
  assert data.get_state() == make_data().get_state()


# A failed read of an array leaves coroutines behind in orbax, and their collection is no warning of
# ours: hence also the gc.collect().
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage, step", [(None, 2), (truncate, 1), (os.remove, 1), (zero, 1)])
def test_without_checksums_orbax_judges(saved, mesh, tmp_path, caplog, damage, step):
  directory = tmp_path / "run"
  shutil.copytree(saved, directory)
  (directory / "2/checksums.0.json").unlink()
  if damage:
    (file,) = (directory / "2/state/ocdbt.process_0/d").iterdir()
    damage(file)
  state, data = restore(directory, mesh)
  gc.collect()
  assert_same(state, make_state(step))
  assert data.get_state() == make_data(step).get_state()
  (line,) = reported(caplog)
  assert ("not verified" if step == 2 else "is broken") in line


def test_another_config_is_an_error_not_damage(saved, mesh, tmp_path):
  directory = tmp_path / "run"
  shutil.copytree(saved, directory)
  state = make_state(0)
  wider = make_state(0, width=64)
  half = state | {"counts": {k: v.astype(jnp.bfloat16) for k, v in state["counts"].items()}}
  more = state | {"fake": np.zeros(3, "f4")}
  less = {k: v for k, v in state.items() if k != "counts"}
  sgd = state | {"opt": (optax.TraceState(state["student"]), optax.EmptyState())}
  for other, message in (
    (
      wider,
      r"2 is of another config: ema/0/w is float32\[64, 32\] in the checkpoint, float32\[64, 64\]",
    ),
    (half, r"counts/bytes is uint8\[7\] in the checkpoint, bfloat16\[7\] in this run. Use another"),
    (more, r"fake is absent in the checkpoint, float32\[3\] in this run"),
    (less, r"counts/bytes is uint8\[7\] in the checkpoint, absent in this run"),
    (sgd, r"opt/0/trace/half is absent in the checkpoint, bfloat16\[16, 3\] in this run"),
  ):
    with (
      Checkpoints(directory, every=1, keep=2) as checkpoints,
      pytest.raises(ValueError, match=message),
    ):
      checkpoints.restore(abstract(place(other, mesh)), make_data())
  assert steps_in(directory) == [1, 2]


def test_another_data_pipeline_is_an_error_not_damage(saved, mesh):
  sets = [grain.MapDataset.range(9).repeat().to_iter_dataset() for _ in range(2)]
  with (
    Checkpoints(saved, every=1, keep=2) as checkpoints,
    pytest.raises(
      ValueError, match=r"2 is intact but cannot be restored: .* use another --workdir"
    ),
  ):
    checkpoints.restore(abstract(place(make_state(0), mesh)), iter(grain.IterDataset.mix(sets)))
  assert steps_in(saved) == [1, 2]


def test_an_error_in_the_background_is_raised(tmp_path, mesh, monkeypatch):
  def no_space(path):
    raise OSError("no space left")

  monkeypatch.setattr("distill_jax.checkpoint._checksum", no_space)
  checkpoints = Checkpoints(tmp_path, every=1, keep=1)
  checkpoints.save(1, place(make_state(1), mesh), make_data())
  with pytest.raises(OSError, match="no space left"):
    checkpoints.save(2, place(make_state(1), mesh), make_data())
  checkpoints.wait()  # once is enough


def python(code, *args, devices=1):
  flags = f"--xla_force_host_platform_device_count={devices}"
  env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "error"}
  env["PYTHONPATH"] = os.pathsep.join(sys.path)
  command = [sys.executable, "-c", code, *map(str, args)]
  return subprocess.Popen(
    command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )


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
  like = place({"step": np.int32(0), "w": noise}, mesh_of(8))
  for (moment, possible), child in zip(moments.items(), children, strict=True):
    _, errors = child.communicate(timeout=300)
    assert child.returncode == -signal.SIGKILL, errors
    directory, unfinished = tmp_path / moment, tmp_path / moment / "2.orbax-checkpoint-tmp"
    assert unfinished.exists() or moment != "before the rename"
    data = iter(grain.MapDataset.range(100).repeat().to_iter_dataset())
    caplog.clear()
    with Checkpoints(directory, every=1, keep=2) as checkpoints:
      state = checkpoints.restore(abstract(like), data)
      step = int(state["step"])
      np.testing.assert_array_equal(state["w"], noise + step)
      assert step in possible and next(data) == step
      assert not [line for line in reported(caplog) if "not verified" not in line]
      checkpoints.save(step + 1, state, data)
    assert steps_in(directory) == [step, step + 1] and not unfinished.exists()


TWO_PROCESSES = """
import pathlib, sys
import grain, jax, jax.numpy as jnp, numpy as np
from jax.experimental import multihost_utils
from distill_jax.checkpoint import Checkpoints

directory, port, index = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, index)
mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.NamedSharding(mesh, jax.P("fsdp"))
replicated = jax.NamedSharding(mesh, jax.P())
make = jax.jit(lambda i: {"step": i, "w": jnp.arange(4096.0) * i},
               out_shardings={"step": replicated, "w": sharding})
like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make(0))
new = lambda: iter(grain.MapDataset.range(index, 100, 2).to_iter_dataset())

data = new()
with Checkpoints(directory, every=1, keep=2, keep_best=1, best_metric="loss") as checkpoints:
  assert checkpoints.restore(like, data) is None
  for step in (1, 2, 3, 4):
    next(data)
    checkpoints.save(step, make(step), data, {"loss": float(step)})
multihost_utils.sync_global_devices("saved")
if index == 0:
  assert sorted(p.name for p in directory.iterdir()) == ["1", "3", "4"]
  assert len(list(directory.glob("4/checksums.?.json"))) == 2
  file = max(directory.glob("4/state/ocdbt.process_1/d/*"), key=lambda p: p.stat().st_size)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)
multihost_utils.sync_global_devices("damaged")
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
  for child in children:
    out, errors = child.communicate(timeout=300)
    assert "done" in out, errors
  assert steps_in(tmp_path) == [3, 4]


def test_import_is_lazy():
  code = "import sys, distill_jax; assert not {'jax', 'orbax', 'grain'} & set(sys.modules)"
  child = python(code)
  assert child.communicate(timeout=300)[1] == "" and child.returncode == 0
