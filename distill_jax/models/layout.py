"""Weights as files store them and as the transformer wants them: axes moved, split and joined.

A tensor's axes are a string of groups, one group for each axis, a letter for each factor of its
size: `HK D` is [H * K, D]. Letters: V tokens, N positions, D width, H heads, G key-value heads, K
head size, F feed-forward width, R = 2 and P = K / 2 (the pairs of a rotation). A digit in front of
a group is the part of a joined tensor that is meant: `0HK` is the first third of [3 * H * K].

A `Row` says where one of our arrays is kept. `{}` in a name stands for the number of the layer.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from distill_jax.config import ConfigError

PARTS = 3  # of a joined tensor: query, key and value


class Row(NamedTuple):
  """One of our arrays: path and axes (without L), and name and axes in the file."""

  path: str
  ours: str
  name: str
  theirs: str
  shift: float = 0.0  # ours = theirs + shift


class Tensor(NamedTuple):
  """A tensor of a file: `read(slices)` gives that part of it as a numpy array."""

  shape: tuple[int, ...]
  dtype: Any
  read: Callable[[tuple[slice, ...]], np.ndarray]
  file: str


@dataclasses.dataclass(frozen=True)
class Leaf:
  """An array that is read from files when asked for: `read(slices)` gives that part of it."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[tuple[slice, ...]], np.ndarray]


def sizes_of(arch) -> dict[str, int]:
  """The letters of an architecture."""
  sizes = dict(V=arch.vocab_size, N=arch.max_positions, D=arch.width, F=arch.mlp_width)
  sizes |= dict(H=arch.heads, G=arch.kv_heads, K=arch.head_dim, R=2, P=arch.head_dim // 2)
  return sizes


def leaf(row: Row, tensors: Mapping[str, Tensor], arch) -> Leaf:
  """Our array of a row, its tensors looked up and their shapes checked.

  Raises:
    ConfigError: a tensor is missing or of another shape; names file, tensor, and both shapes.
  """
  sizes = sizes_of(arch)
  layered = "{}" in row.name
  expected = tuple(_size(group, sizes) for group in row.theirs.split())
  names = []
  for i in range(arch.layers if layered else 1):
    names.append(name := row.name.format(i))
    if name not in tensors:
      files = sorted({t.file for t in tensors.values()}) or ["no file"]
      raise ConfigError(f"{files[0]}: no tensor {name!r}, which the architecture asks for.")
    found = tensors[name]
    if tuple(found.shape) != expected:
      raise ConfigError(
        f"{found.file}: tensor {name!r} has shape {list(found.shape)}, the architecture "
        f"asks for {list(expected)}."
      )
  whole = tuple(_size(group, sizes) for group in row.ours.split())
  shape = (len(names), *whole) if layered else whole

  def read(index: tuple[slice, ...]) -> np.ndarray:
    spans = [range(n)[s] for n, s in zip(shape, index, strict=True)]
    if not layered:
      return _part(row, tensors[row.name], sizes, spans)
    return np.stack([_part(row, tensors[names[i]], sizes, spans[1:]) for i in spans[0]])

  return Leaf(shape, np.dtype(tensors[names[0]].dtype), read)


def _part(row: Row, tensor: Tensor, sizes: dict[str, int], spans: list[range]) -> np.ndarray:
  """A part of our array, out of the smallest box of the file's tensor that holds it."""
  ours, theirs = row.ours.split(), row.theirs.split()
  box = {letter: range(sizes[letter]) for letter in "".join(ours)}
  box |= {group: span for group, span in zip(ours, spans, strict=True) if len(group) == 1}
  region, shape, order, cut = [], [], [], []
  for group in theirs:
    inner = _size(group[1:], sizes)
    first = range(int(group[0]), int(group[0]) + 1) if group[0].isdigit() else box[group[0]]
    region.append(slice(first.start * inner, first.stop * inner))
    for i, letter in enumerate(group):
      shape.append(len(first) if i == 0 else sizes[letter])
      keep = slice(None) if i == 0 else slice(box[letter].start, box[letter].stop)
      cut.append(0 if letter.isdigit() else keep)
      order += [] if letter.isdigit() else [letter]
  x = tensor.read(tuple(region)).reshape(shape)[tuple(cut)]
  x = x.transpose([order.index(letter) for letter in "".join(ours)])
  x = x.reshape([math.prod(len(box[letter]) for letter in group) for group in ours])
  joined = [
    slice(None) if len(group) == 1 else slice(span.start, span.stop)
    for group, span in zip(ours, spans, strict=True)
  ]
  x = x[tuple(joined)]
  return (x + np.asarray(row.shift, x.dtype)) if row.shift else x


def theirs(rows: Iterable[Row], flat: Mapping[str, Any], arch) -> dict[str, np.ndarray]:
  """The tensors of a file out of our arrays, given by path: the way back."""
  sizes = sizes_of(arch)
  parts: dict[str, dict[int, np.ndarray]] = {}
  along: dict[str, int] = {}  # the axis that joins them
  for row in rows:
    if row.path not in flat:
      continue
    whole = np.asarray(flat[row.path])
    for i in range(arch.layers if "{}" in row.name else 1):
      x = whole[i] if "{}" in row.name else whole
      letters = row.ours.replace(" ", "")
      x = x.reshape([sizes[letter] for letter in letters])
      groups = [group.lstrip("0123456789") for group in row.theirs.split()]
      x = x.transpose([letters.index(letter) for letter in "".join(groups)])
      x = x.reshape([_size(group, sizes) for group in groups])
      joined = [(n, g) for n, g in enumerate(row.theirs.split()) if g[0].isdigit()]
      along[row.name.format(i)], group = joined[0] if joined else (0, "0")
      part = x - np.asarray(row.shift, x.dtype)
      parts.setdefault(row.name.format(i), {})[int(group[0])] = part
  return {
    # safetensors writes the memory as it lies
    name: np.ascontiguousarray(np.concatenate([found[i] for i in sorted(found)], along[name]))
    for name, found in parts.items()
  }


def tree(leaves: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
  """Values by path as a nested dict; names 0, 1, ... are places in a list."""
  nested: dict[str, Any] = {}
  for path, value in leaves.items():
    *parents, last = path.split(separator)
    node = nested
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  return {name: _lists(value) for name, value in nested.items()}


def _lists(node: Any) -> Any:
  if not isinstance(node, dict):
    return node
  node = {name: _lists(value) for name, value in node.items()}
  places = [str(i) for i in range(len(node))]
  return [node[i] for i in places] if set(node) == set(places) else node


def paths(params: Any, separator: str = "/") -> dict[str, Any]:
  """The leaves of a nest of dicts and lists by path."""
  return {
    jax.tree_util.keystr(path, simple=True, separator=separator): x
    for path, x in jax.tree_util.tree_leaves_with_path(params)
  }


def _size(group: str, sizes: dict[str, int]) -> int:
  return math.prod(PARTS if letter.isdigit() else sizes[letter] for letter in group)
