"""Meshes, sharding rules, and batches on them; eight simulated devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from ml_collections import ConfigDict

from distill_jax import mesh as mesh_lib
from distill_jax.config import ConfigError
from distill_jax.mesh import abstract, make_mesh, put_batch, shardings


def sizes(data=-1, fsdp=1, tensor=1, slices=1):
  return ConfigDict(dict(data=data, fsdp=fsdp, tensor=tensor, slices=slices))


@pytest.fixture(scope="module")
def mesh():
  return make_mesh(sizes(data=2, fsdp=2, tensor=2))


def specs(tree, rules, mesh):
  """Path -> PartitionSpec."""
  shapes = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s, jnp.float32), tree, is_leaf=lambda x: isinstance(x, tuple)
  )
  leaves = jax.tree_util.tree_leaves_with_path(shardings(shapes, rules, mesh))
  return {jax.tree_util.keystr(k, simple=True, separator="/"): s.spec for k, s in leaves}


class Device:
  """Device `i` of a cluster with four to a slice."""

  platform, device_kind, client = "gpu", "a gpu", None

  def __init__(self, i):
    self.id, self.slice_index, self.process_index = i, i // 4, i // 4


@pytest.mark.parametrize(
  "config, shape",
  [
    (sizes(), (8, 1, 1)),
    (sizes(data=2, fsdp=-1), (2, 4, 1)),
    (sizes(data=1, fsdp=2, tensor=-1), (1, 2, 4)),
    (sizes(data=2, fsdp=2, tensor=2), (2, 2, 2)),
    (sizes(data=-1, fsdp=8), (1, 8, 1)),
  ],
)
def test_the_rest_of_the_devices_goes_where_minus_one_stands(config, shape):
  mesh = make_mesh(config)
  assert mesh.axis_names == ("data", "fsdp", "tensor")
  assert mesh.devices.shape == shape
  assert mesh.axis_types == (AxisType.Auto,) * 3
  assert sorted(d.id for d in mesh.devices.flat) == list(range(8))


def test_a_mesh_of_the_devices_that_are_given():
  assert make_mesh(sizes(), jax.devices()[2:5]).devices[:, 0, 0].tolist() == jax.devices()[2:5]


@pytest.mark.parametrize(
  "config, says",
  [
    (sizes(data=-1, fsdp=-1), "only one of"),
    (sizes(data=3), "3 x 1 x 1, but there are 8 devices"),
    (sizes(data=-1, fsdp=3), "x 3 x 1, but there are 8 devices"),
    (sizes(data=-1, fsdp=16), "x 16 x 1, but there are 8 devices"),
    (sizes(data=0), "0 x 1 x 1, but there are 8 devices"),
    (sizes(fsdp=8, slices=2), "mesh.data = 1 is not a multiple of mesh.slices = 2"),
    (sizes(slices=2), "mesh.slices = 2: "),  # simulated devices have no slices
  ],
)
def test_an_impossible_mesh_is_one_clear_line(config, says):
  with pytest.raises(ConfigError) as error:
    make_mesh(config)
  assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  "config, ids",
  [
    # the data axis goes from slice to slice, the others stay within one
    (sizes(data=2, fsdp=2, tensor=2, slices=2), [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]),
    (sizes(data=4, fsdp=-1, slices=2), [[[0], [1]], [[2], [3]], [[4], [5]], [[6], [7]]]),
  ],
)
def test_only_the_data_axis_spans_slices(config, ids):
  devices = [Device(i) for i in np.random.default_rng(0).permutation(8)]
  mesh = make_mesh(config, devices)
  assert np.vectorize(lambda d: d.id)(mesh.devices).tolist() == ids


def test_more_slices_than_there_are():
  with pytest.raises(ConfigError, match=r"mesh\.slices = 4: "):
    make_mesh(sizes(data=4, fsdp=2, slices=4), [Device(i) for i in range(8)])


def test_the_first_rule_that_matches_wins(mesh):
  tree = dict(layers=dict(up=(4, 8), down=(4, 8)), up=(4, 8))
  rules = (("layers/up$", ("fsdp", None)), ("up$", ("tensor", None)), ("", (None, "data")))
  assert specs(tree, rules, mesh) == {
    "layers/up": jax.P("fsdp", None),
    "layers/down": jax.P(None, "data"),
    "up": jax.P("tensor", None),
  }
  assert set(specs(tree, (), mesh).values()) == {jax.P(None, None)}


def test_a_partition_is_counted_from_the_last_axis(mesh):
  rules = (("", ("fsdp", "tensor")),)
  tree = dict(matrix=(4, 8), stack=(3, 4, 8), deep=(5, 3, 4, 8), vector=(8,), scalar=())
  assert specs(tree, rules, mesh) == {
    "matrix": jax.P("fsdp", "tensor"),
    "stack": jax.P(None, "fsdp", "tensor"),
    "deep": jax.P(None, None, "fsdp", "tensor"),
    "vector": jax.P("tensor"),
    "scalar": jax.P(),
  }


def test_an_axis_that_does_not_divide_is_dropped_alone(mesh):
  rules = (("", (("data", "fsdp"), "tensor")),)
  tree = dict(both=(8, 6), rows=(8, 5), columns=(6, 8), none=(2, 3))
  assert specs(tree, rules, mesh) == {
    "both": jax.P(("data", "fsdp"), "tensor"),
    "rows": jax.P(("data", "fsdp"), None),
    "columns": jax.P(None, "tensor"),  # 6 rows on 2 x 2 devices
    "none": jax.P(None, None),
  }


def test_an_unknown_mesh_axis_is_named(mesh):
  with pytest.raises(ConfigError, match="'model'; the axes are"):
    specs(dict(a=(4, 4)), (("a", ("fsdp", "model")),), mesh)


def test_a_table_that_went_through_json_means_the_same(mesh):
  tree, pairs = dict(a=(8, 8)), (("a", (("data", "fsdp"), None)),)
  lists = [["a", [["data", "fsdp"], None]]]
  assert specs(tree, lists, mesh) == specs(tree, pairs, mesh)


def test_moments_and_averages_lie_as_their_parameter_does(mesh):
  params = dict(layers=dict(up=jnp.zeros((3, 4, 8)), norm=jnp.zeros((3, 4))))
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  state = jax.eval_shape(lambda p: dict(student=p, opt=tx.init(p), ema=dict(a=p)), params)
  layout = shardings(state, (("layers/up$", ("fsdp", "tensor")),), mesh)
  adam = optax.tree.get(layout["opt"], "mu"), optax.tree.get(layout["opt"], "nu")
  for tree in (layout["student"], layout["ema"]["a"], *adam):
    assert tree["layers"]["up"].spec == jax.P(None, "fsdp", "tensor")
    assert tree["layers"]["norm"].spec == jax.P(None, None)


def test_abstract_carries_shape_dtype_and_sharding(mesh):
  tree = dict(a=jnp.zeros((4, 8), jnp.bfloat16))
  layout = shardings(tree, (("a", ("fsdp", None)),), mesh)
  leaf = abstract(tree, layout)["a"]
  assert (leaf.shape, leaf.dtype, leaf.sharding) == ((4, 8), jnp.bfloat16, layout["a"])


def test_put_batch_spreads_rows_in_order_over_data_and_fsdp(mesh):
  batch = dict(
    tokens=np.arange(24, dtype=np.int32).reshape(8, 3), mask=np.arange(8).reshape(8, 1) > 3
  )
  placed = put_batch(batch, mesh)
  for name, value in batch.items():
    np.testing.assert_array_equal(placed[name], value)
    assert placed[name].dtype == value.dtype
  rows = {s.device.id: s.data.tolist() for s in placed["tokens"].addressable_shards}
  grid = mesh.devices.reshape(4, 2)  # data and fsdp, tensor
  for block, copies in enumerate(grid):
    for device in copies:
      assert rows[device.id] == batch["tokens"][2 * block : 2 * block + 2].tolist()


def test_one_process_joins_nothing(monkeypatch):
  calls = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *args: calls.append(args))
  monkeypatch.setattr(jax.config, "update", lambda *args: None)
  mesh_lib.initialize_processes("", 0, 0)
  assert calls == []
  mesh_lib.initialize_processes("", -1, 0)  # found by jax
  mesh_lib.initialize_processes("host:1234", 2, 1)
  assert calls == [(), ("host:1234", 2, 1)]
