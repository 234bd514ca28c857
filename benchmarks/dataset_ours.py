"""Our side of dataset_step.py, and the random numbers that both sides share."""

import pathlib
import time

import numpy as np
from dataset_authors import (
  CLASSES,
  LR,
  LR_LR,
  MOMENTUM,
  OPERATIONS,
  PARITY,
  POOL,
  SHAPE,
  STUDENT_LR,
  Cell,
  held,
  real_images,
)

START_TO_TARGET = 2  # epochs of the expert


def config_of(cell: Cell, unroll: str, folder: pathlib.Path):
  """Our experiment, at the sizes of the cell."""
  from distill_jax import config as config_lib

  file = f"experiments/dataset/{cell.method}.py:data=fashion,ipc={cell.per_class}"
  config = config_lib.load(file)
  config.data.shape, config.models.student.width = SHAPE, cell.width
  config.augment, config.real_per_class = OPERATIONS, cell.real
  config.optim.lr, config.optim.b1 = LR[cell.method], MOMENTUM
  if cell.method == "mtt":
    given = config.method
    given.unroll, given.syn_steps, given.lr, given.lr_lr = unroll, cell.unrolled, STUDENT_LR, LR_LR
    given.min_start, given.max_start, given.expert_epochs = 0, 1, START_TO_TARGET  # start at 0
    given.experts.update(dict(count=1, epochs=1 + START_TO_TARGET, batch_size=64))
    config.pretrained.experts = str(folder / "experts")
  return config


def real_set(cell: Cell):
  from distill_jax.distilled.real import Real

  count = POOL[cell.method]
  sizes = np.full(CLASSES, count, np.int32)
  return Real(*real_images(count), np.arange(CLASSES, dtype=np.int32) * count, sizes)


def program_of(cell: Cell, unroll: str, folder: pathlib.Path):
  """What train.run compiles, with our images for Fashion-MNIST's."""
  import jax

  from distill_jax import train
  from distill_jax.data import image_set
  from distill_jax.mesh import make_mesh

  config = config_of(cell, unroll, folder)
  image_set.whole = lambda config: real_set(cell)
  mesh = make_mesh(config.mesh, jax.devices()[:1])
  jax.set_mesh(mesh).__enter__()
  return config, train.build(config, mesh)


class Ours:
  """unroll: of MTT."""

  def __init__(self, unroll: str, cell: Cell, folder: pathlib.Path, reference: pathlib.Path):
    import jax

    self.jax, self.keys = jax, np.load(folder / "draws.npz")["keys"]
    _, self.program = program_of(cell, unroll, folder)
    self.begin()
    jax.block_until_ready(self.state)
    self.facts = dict(before=held())
    begin = time.perf_counter()
    self.compiled = self.program.step.lower(*self.program.abstract).compile()
    temporaries = self.compiled.memory_analysis().temp_size_in_bytes / 2**30
    self.facts.update(compile_seconds=time.perf_counter() - begin, temporaries=temporaries)

  def begin(self) -> None:
    self.state, self.frozen = self.program.init(self.program.keys[0], self.program.pretrained)

  def step(self, t: int, parity: bool):
    """As Theirs.step. The momentum after a first update is the gradient."""
    if parity:
      self.begin()
    key = self.jax.random.fold_in(self.jax.random.key(1), self.keys[t])
    self.state, metrics = self.compiled(self.state, self.frozen, {}, key)
    loss = float(metrics["loss"][0])
    shape = self.state["student"]["images"].shape
    leaves = self.jax.tree.leaves(self.state["opt"]) if parity else []
    return loss, next((np.array(x) for x in leaves if x.shape == shape), None)


def save(cell: Cell, steps: int, folder: pathlib.Path) -> None:
  """The expert, and the random numbers that our first steps draw."""
  import jax

  from distill_jax.data import siamese
  from distill_jax.distilled import experts, real
  from distill_jax.methods.dataset import mtt
  from distill_jax.models import convnet, layout, pretrained

  arrays: dict = {}

  def add(name, params):
    flat = layout.paths(params, separator=".")
    arrays.update({f"{name}.{path}": np.asarray(x) for path, x in flat.items()})

  def add_augmentation(name, drawn):
    arrays[f"int{name}"], arrays[f"rand{name}"] = uniform(drawn)

  if cell.method == "mtt":
    config = config_of(cell, "full", folder)
    trajectory = jax.jit(lambda key, real: experts.train(config, real, key))(
      jax.random.key(2), real_set(cell)
    )
    pretrained.save(folder / "experts", trajectory, config.models.student, "float32")
    for name, row in (("start", 0), ("target", START_TO_TARGET)):
      add(name, jax.tree.map(lambda x, row=row: x[row, 0], trajectory))
  config, program = program_of(cell, "full", folder)
  state, _ = program.init(program.keys[0], program.pretrained)
  arrays["images"] = np.asarray(state["student"]["images"])

  def split(number):
    return jax.random.split(jax.random.fold_in(jax.random.key(1), number), 3)

  def shared(number):
    return siamese.draw(split(number)[2], SHAPE[:2], operations=OPERATIONS)

  if cell.method == "dm":  # operations in turn
    operation = np.asarray(jax.jit(jax.vmap(lambda n: shared(n).operation))(np.arange(20 * steps)))
    numbers = [np.flatnonzero(operation == i) for i in range(len(OPERATIONS))]
    keys = [int(numbers[t % len(numbers)][t // len(numbers)]) for t in range(steps)]
  else:
    keys = [*range(steps)]
  arrays["keys"] = np.array(keys)
  for t, number in enumerate(keys if cell.method == "dm" else keys[: PARITY["mtt"]]):
    first, second, third = split(number)
    if cell.method == "dm":
      add_augmentation(t, shared(number))
      if t < PARITY["dm"]:
        add(f"weights{t}", convnet.init(config.models.student, SHAPE, first))
        arrays[f"x{t}"] = np.asarray(real.of_classes(second, real_on_device(cell), cell.real)[0])
      continue
    images = len(arrays["images"])
    inner = mtt.batches(third, images, images, cell.unrolled)
    arrays[f"rows{t}"] = np.asarray(inner["rows"])
    for k, key in enumerate(inner["key"]):
      drawn = siamese.draw(key, SHAPE[:2], operations=OPERATIONS, batch=images)
      add_augmentation(f"{t}.{k}", drawn)
  np.savez(folder / "draws.npz", **arrays)


def real_on_device(cell: Cell):
  import jax

  return jax.tree.map(jax.numpy.asarray, real_set(cell))


def uniform(drawn) -> tuple[np.ndarray, np.ndarray]:
  """The whole numbers [n, 1 or B], the operation first, and those in [0, 1) that lead their
  DiffAugment to the parameters that ours drew."""
  from distill_jax.data.siamese import STRENGTH

  operation, turn = int(drawn.operation), np.deg2rad(STRENGTH.rotate)
  whole, rand = [np.asarray(drawn.operation)], []
  low = 1 / STRENGTH.scale
  match OPERATIONS[operation]:
    case "color":
      rand = [drawn.brightness / STRENGTH.brightness + 0.5, drawn.saturation / STRENGTH.saturation]
      rand.append(drawn.contrast - STRENGTH.contrast)
    case "crop":
      whole += drawn.shift
    case "cutout":
      whole += drawn.corner
    case "flip":
      rand = [np.where(drawn.flip, 0.0, 0.999)]
    case "scale":
      rand = [(x - low) / (STRENGTH.scale - low) for x in drawn.scale]
    case "rotate":
      rand = [drawn.angle / (2 * turn) + 0.5]
  size = max(np.size(drawn.angle), 1)
  pair = [np.array([np.broadcast_to(x, size) for x in list_]) for list_ in (whole, rand)]
  return pair[0].astype(np.int64), pair[1].reshape(-1, size).astype(np.float32)
