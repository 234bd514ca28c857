"""The PyTorch side of dataset_step.py; nothing else uses it.

Networks, augmentation and ReparamModule are imported from the authors' clones. The steps stand in
the middle of their main functions, so the loops around those parts are written here anew.
"""

import importlib
import os
import pathlib
import resource
import sys
import time
import types
from typing import NamedTuple
from unittest import mock

import numpy as np

SHAPE, CLASSES, DEPTH, MOMENTUM = (28, 28, 1), 10, 3, 0.5
OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
PARITY = dict(dm=len(OPERATIONS), mtt=2)  # steps
POOL = dict(dm=1000, mtt=100)  # real images of each class
LR = dict(dm=1.0, mtt=100.0)  # of the images
STUDENT_LR, LR_LR = 0.01, 1e-7  # of MTT's student, and of that rate: FTD's table
FOLDERS = dict(dm="DatasetCondensation", mtt="mtt-distillation")


class Cell(NamedTuple):
  method: str  # dm or mtt
  width: int
  per_class: int  # synthetic images
  real: int  # images of each class in a step of DM
  unrolled: int  # student steps of MTT

  def __str__(self) -> str:
    return f"{self.method}-{self.width}-{self.per_class}"


def real_images(count: int):
  """Float32 [10 count, 28, 28, 1] and labels, class after class: a pattern of each, and noise."""
  rng = np.random.default_rng(0)
  label = np.repeat(np.arange(CLASSES, dtype=np.int32), count)
  pattern = np.kron(rng.normal(size=(CLASSES, 7, 7)), np.ones((4, 4)))[..., None]
  return np.float32(0.7 * (pattern[label] + rng.normal(size=(len(label), *SHAPE)))), label


def held() -> float:
  """Resident memory of this process now, GiB; of Linux."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * resource.getpagesize() / 2**30


class Drawn:
  """torch, except for random numbers [1 or B] that were put in, one after the other."""

  def __init__(self, torch):
    self.torch, self.put = torch, dict(rand=[], randint=[])

  def __getattr__(self, name):
    return getattr(self.torch, name)

  def rand(self, *size, **kwargs):
    return self.next("rand", size) if self.put["rand"] else self.torch.rand(*size, **kwargs)

  def randint(self, low, high, size, **kwargs):
    if self.put["randint"]:
      return self.next("randint", size)
    return self.torch.randint(low, high, size, **kwargs)

  def next(self, name, size):
    numbers = self.torch.from_numpy(self.put[name].pop(0))[: size[0]]
    return numbers.reshape(-1, *[1] * (len(size) - 1)).expand(*size).clone()


def imported(folder: pathlib.Path, *names: str) -> list[types.ModuleType]:
  """Modules of a clone; what they import and no step needs stands empty."""
  empty = ("torchvision", "scipy", "scipy.ndimage", "scipy.ndimage.interpolation", "kornia", "tqdm")
  stubs = {name: types.ModuleType(name) for name in empty}
  vars(stubs["torchvision"]).update(datasets=None, transforms=None)
  vars(stubs["scipy.ndimage.interpolation"]).update(rotate=None)
  sys.dont_write_bytecode = True
  with (
    mock.patch.dict(sys.modules, stubs),
    mock.patch.object(sys, "path", [str(folder), *sys.path]),
  ):
    return [importlib.import_module(name) for name in names]


class Theirs:
  """side: "loop" (DM, class after class, as its script), "batched" (DM, all classes at once), or
  "authors" (MTT, the graph of all student steps kept)."""

  def __init__(self, side: str, cell: Cell, folder: pathlib.Path, reference: pathlib.Path):
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    self.torch, self.cell, self.drawn = torch, cell, Drawn(torch)
    clone = reference / FOLDERS[cell.method]
    self.utils, self.networks = imported(clone, "utils", "networks")
    self.utils.torch, self.augmentation = self.drawn, self.utils.ParamDiffAug()
    self.draws = np.load(folder / "draws.npz")
    drawn = [name for name in self.draws.files if name.startswith(("rand", "int"))]
    self.numbers = {name: self.draws[name] for name in drawn}
    self.loss = dict(loop=self.loop, batched=self.batched, authors=self.unrolled)[side]
    self.label = torch.arange(CLASSES).repeat_interleave(cell.per_class)
    if cell.method == "dm":
      x, _ = real_images(POOL["dm"])
      self.pool = self.nchw(x).reshape(CLASSES, POOL["dm"], 1, *SHAPE[:2])
    else:
      (self.reparam,) = imported(clone, "reparam_module")
      self.start, self.target = (self.flat(name) for name in ("start", "target"))
    self.begin()
    self.facts = dict(before=held(), compile_seconds=0.0, temporaries=None)

  def begin(self) -> None:
    sgd = self.torch.optim.SGD
    self.images = self.nchw(self.draws["images"]).requires_grad_()
    self.lr = self.torch.tensor(STUDENT_LR, requires_grad=True)
    self.optims = [sgd([self.images], lr=LR[self.cell.method], momentum=MOMENTUM)]
    if self.cell.method == "mtt":
      self.optims.append(sgd([self.lr], lr=LR_LR, momentum=MOMENTUM))

  def step(self, t: int, parity: bool):
    """The loss of update number t; for parity from the first images, with ours' random numbers, and
    the images' gradient."""
    if parity:
      self.begin()
    loss = self.loss(t)
    for optim in self.optims:
      optim.zero_grad()
    loss.backward()
    for optim in self.optims:
      optim.step()
    gradient = self.images.grad.permute(0, 2, 3, 1).numpy() if parity else None
    return loss.item(), gradient

  def loop(self, t: int):
    embed, total = self.random_network(t), 0.0
    for c, real in enumerate(self.real(t)):
      synthetic = self.images[c * self.cell.per_class : (c + 1) * self.cell.per_class]
      seed = int(time.time() * 1000) % 100000
      features = embed(self.augment(real, f"{t}", seed)).detach()
      distance = embed(self.augment(synthetic, f"{t}", seed)).mean(0) - features.mean(0)
      total = total + distance.square().sum()
    return total

  def batched(self, t: int):
    torch, embed = self.torch, self.random_network(t)
    seed = int(time.time() * 1000) % 100000
    with torch.no_grad():
      real = embed(self.augment(torch.cat([*self.real(t)]), f"{t}", seed))
    synthetic = embed(self.augment(self.images, f"{t}", seed))
    means = [x.reshape(CLASSES, -1, x.shape[1]).mean(1) for x in (synthetic, real)]
    return (means[0] - means[1]).square().sum()

  def unrolled(self, t: int):
    torch, f = self.torch, self.torch.nn.functional
    net = self.reparam.ReparamModule(self.network())
    params = self.start.clone().requires_grad_()
    for k in range(self.cell.unrolled):
      drawn = f"rows{t}" in self.draws
      rows = torch.from_numpy(self.draws[f"rows{t}"][k]) if drawn else None
      rows = torch.randperm(len(self.images)) if rows is None else rows.long()
      x = self.augment(self.images[rows], f"{t}.{k}", -1)
      loss = f.cross_entropy(net(x, flat_param=params), self.label[rows])
      (gradient,) = torch.autograd.grad(loss, params, create_graph=True)
      params = params - self.lr * gradient
    far = (self.start - self.target).square().sum()
    return (params - self.target).square().sum() / far

  def augment(self, x, name: str, seed: int):
    """Their DiffAugment, with ours' random numbers where there are some."""
    if f"rand{name}" in self.numbers:
      pairs = dict(rand=f"rand{name}", randint=f"int{name}")
      self.drawn.put = {kind: [*self.numbers[key]] for kind, key in pairs.items()}
    seed = -1 if len(x) == 1 else seed  # PyTorch 2.13 refuses their sharing in a batch of one
    x = self.utils.DiffAugment(x, "_".join(OPERATIONS), seed=seed, param=self.augmentation)
    assert not any(self.drawn.put.values()), "they drew less than ours"
    return x.reshape(-1).view(x.shape)  # crop's strides on grey images read as channels last

  def real(self, t: int):
    """Of each class, `cell.real` images."""
    if f"x{t}" in self.draws:
      return self.nchw(self.draws[f"x{t}"]).split(self.cell.real)
    orders = [np.random.permutation(POOL["dm"])[: self.cell.real] for _ in range(CLASSES)]
    return (pool[order] for pool, order in zip(self.pool, orders, strict=True))

  def random_network(self, t: int):
    net = self.network()
    if f"weights{t}.head.bias" in self.draws:
      self.load(net, f"weights{t}")
    net.requires_grad_(False)
    return net.embed

  def network(self):
    """Their ConvNet of images that keep their size: they pad grey ones by 3, ours by 1."""
    net = self.networks.ConvNet(
      channel=SHAPE[2],
      num_classes=CLASSES,
      net_width=self.cell.width,
      net_depth=DEPTH,
      net_act="relu",
      net_norm="instancenorm",
      net_pooling="avgpooling",
      im_size=(24, 24),  # of which 3 x 3 are left, as of 28 x 28
    )
    net.features[0].padding = (1, 1)
    return net

  def load(self, net, name: str) -> None:
    def tensor(path):
      return self.torch.from_numpy(self.draws[f"{name}.{path}"])

    with self.torch.no_grad():
      for i in range(DEPTH):
        conv, norm = net.features[4 * i], net.features[4 * i + 1]
        conv.weight.copy_(tensor(f"blocks.{i}.conv.kernel").permute(3, 2, 0, 1))
        conv.bias.copy_(tensor(f"blocks.{i}.conv.bias"))
        norm.weight.copy_(tensor(f"blocks.{i}.norm.scale"))
        norm.bias.copy_(tensor(f"blocks.{i}.norm.bias"))
      head = tensor("head.kernel").reshape(3, 3, self.cell.width, CLASSES).permute(3, 2, 0, 1)
      net.classifier.weight.copy_(head.reshape(CLASSES, -1))
      net.classifier.bias.copy_(tensor("head.bias"))

  def flat(self, name: str):
    net = self.network()
    self.load(net, name)
    return self.torch.cat([x.detach().reshape(-1) for x in net.parameters()])

  def nchw(self, x):
    return self.torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
