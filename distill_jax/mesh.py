"""Devices as a mesh, rules that say how arrays lie on it, and batches onto it.

The axes are `data` (replicas of the parameters), `fsdp` (parameters and batch both split) and
`tensor` (heads, hidden units and vocabulary split). A rule table is data: pairs of a regular
expression and a partition, the first that matches an array's path wins. State and frozen trees have
a table each, so that a teacher may lie differently from its student.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from distill_jax.config import ConfigError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(config, devices: Sequence | None = None) -> Mesh:
  """A mesh of all devices.

  Args:
    config: ConfigDict with `data`, `fsdp`, `tensor` (sizes; one may be -1, the rest of the devices)
      and `slices` (TPU slices or GPU nodes joined by the slower network; the data axis spans them).
    devices: default jax.devices().
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = [config[axis] for axis in AXES]
  if sizes.count(-1) > 1:
    raise ConfigError(f"mesh: only one of {AXES} may be -1, got {sizes}.")
  if -1 in sizes:
    sizes[sizes.index(-1)] = len(devices) // max(1, -int(np.prod(sizes)))
  if np.prod(sizes) != len(devices):
    raise ConfigError(
      f"mesh: data x fsdp x tensor = {' x '.join(map(str, sizes))}, but there are {len(devices)} "
      "devices."
    )
  if config.slices > 1:
    if sizes[0] % config.slices:
      raise ConfigError(
        f"mesh.data = {sizes[0]} is not a multiple of mesh.slices = {config.slices}."
      )
    inner = [sizes[0] // config.slices, *sizes[1:]]
    try:
      grid = mesh_utils.create_hybrid_device_mesh(inner, [config.slices, 1, 1], devices)
    except ValueError as error:
      raise ConfigError(f"mesh.slices = {config.slices}: {error}") from None
  elif devices[0].platform == "tpu":
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  else:
    grid = np.array(devices).reshape(sizes)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def connect_groups(mesh: Mesh) -> None:
  """Lets every group of devices that shares mesh axes reduce something small.

  CPU processes connect a group (gloo) when it first communicates, and give each other 30 seconds,
  less than they may differ in compiling the first program that uses it. Once connected they wait.
  Devices of other kinds need no such thing.
  """
  if jax.process_count() == 1 or jax.default_backend() != "cpu":
    return
  spec = jax.P(*mesh.axis_names)
  ones = jax.jit(
    lambda: jnp.ones(tuple(mesh.shape.values())), out_shardings=NamedSharding(mesh, spec)
  )()
  axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
  for count in range(1, len(axes) + 1):
    for group in itertools.combinations(axes, count):
      summed = jax.shard_map(
        lambda x: jax.lax.psum(x, group), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
      )
      jax.block_until_ready(jax.jit(summed)(ones))


def split_batch(x: jax.Array) -> jax.Array:
  """x [B, ...] with its first axis over `data` and `fsdp` and the rest whole, where there is a mesh
  that divides it. Without the word XLA may split activations as the weights are, and move them."""
  devices = batch_devices()
  if devices == 1 or len(x) % devices:
    return x
  return jax.lax.with_sharding_constraint(x, jax.P(("data", "fsdp")))


def batch_devices() -> int:
  """How many devices the mesh in use splits a batch over; 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  if not {"data", "fsdp"} <= set(mesh.axis_names) or mesh.manual_axes:
    return 1
  return mesh.shape["data"] * mesh.shape["fsdp"]


def shardings(tree: Any, rules: Sequence[tuple[str, Sequence]], mesh: Mesh) -> Any:
  """NamedShardings for a tree of arrays or shapes.

  Args:
    tree: leaves have `.shape`.
    rules: (regex, partition) pairs; the partition names a mesh axis (or a tuple of them, or None)
      for each array axis, counted from the last: leading axes that it does not mention are not
      split. An axis that does not divide the array is dropped. The optimiser's moments have their
      parameter's path in theirs, so one rule serves both.
    mesh: the mesh.
  """

  def lay(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    partition = next((p for pattern, p in rules if re.search(pattern, name)), ())
    return NamedSharding(mesh, _fit(partition, x.shape, mesh))

  return jax.tree_util.tree_map_with_path(lay, tree)


def _fit(partition: Sequence, shape: tuple[int, ...], mesh: Mesh) -> jax.P:
  if len(partition) > len(shape):
    partition = partition[len(partition) - len(shape) :] if shape else ()
  padded = [None] * (len(shape) - len(partition)) + list(partition)
  for i, axes in enumerate(padded):
    if axes is None:
      continue
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    unknown = [a for a in axes if a not in mesh.shape]
    if unknown:
      raise ConfigError(f"sharding rule names mesh axis {unknown[0]!r}; the axes are {AXES}.")
    if shape[i] % int(np.prod([mesh.shape[a] for a in axes])):
      padded[i] = None
  return jax.P(*padded)


def abstract(tree: Any, layout: Any) -> Any:
  """Shapes with their shardings: what lower(), and a checkpoint's restore, ask for."""
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, layout)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The first axis over `data` and `fsdp`."""
  return NamedSharding(mesh, jax.P(BATCH_AXES))


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """This process's rows of a batch, as global arrays."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def initialize_processes(coordinator: str, processes: int, process: int) -> None:
  """Joins the other processes of this run: given explicitly, or found in the environment of a TPU
  pod or SLURM."""
  if coordinator:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, processes, process)
  elif processes:
    jax.distributed.initialize()
