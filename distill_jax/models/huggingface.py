"""Hugging Face folders: config.json and safetensors in one file or several, read part by part, and
written.

Nothing of a file is believed: names stay inside the folder, shapes are those that config.json
implies, and a tensor that nobody asks for is an error, for a model with more weights is another.
"""

import json
import pathlib
import re
from typing import Any

import jax
import numpy as np

from distill_jax.config import ConfigError
from distill_jax.models import hf_config, layout, transformer
from distill_jax.models.families import FAMILIES
from distill_jax.models.layout import Tensor

SHARD = 4 << 30  # bytes of a written file
_DTYPES = dict(F32="float32", F16="float16", BF16="bfloat16", F64="float64")
# buffers that some files keep, and the parts of other modalities
_IGNORED = re.compile(
  r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$|vision_tower\.|multi_modal_projector\."
)


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """A JSON object, or a ConfigError that names the file."""
  try:
    stored = json.loads(file.read_text())
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise ConfigError(f"{file} is not JSON: {error}.") from None
  if not isinstance(stored, dict):
    raise ConfigError(f"{file} is not a JSON object.")
  return stored


def load(folder: pathlib.Path) -> dict[str, Any]:
  """The parameters of a folder as a nested dict of `layout.Leaf`, checked and not yet read."""
  config = folder / "config.json"
  family, arch = hf_config.decode(read_json(config), str(config))
  tensors = _named_as_in_the_table(FAMILIES[family].rows, _tensors(folder))
  return leaves(FAMILIES[family].rows, tensors, arch, ignored=_IGNORED)


def leaves(rows, tensors: dict[str, Tensor], arch, ignored: re.Pattern) -> dict[str, Any]:
  """What the transformer of `arch` asks for, as leaves that read from tensors.

  Raises:
    ConfigError: missing, misshapen or left-over tensors.
  """
  try:
    asked = jax.eval_shape(transformer.make(arch).init, jax.random.key(0))
  except ValueError as error:
    raise ConfigError(f"The architecture is that of no model: {error}.") from None
  by_path = {row.path: row for row in rows}
  found = {path: layout.leaf(by_path[path], tensors, arch) for path in layout.paths(asked)}
  used = {by_path[path].name.format(i) for path in found for i in range(arch.layers)}
  used |= {"lm_head.weight", "output.weight"} if arch.tie_embeddings else set()
  rest = [name for name in tensors if name not in used and not ignored.search(name)]
  if rest:
    raise ConfigError(
      f"{tensors[rest[0]].file}: {len(rest)} tensors that the architecture does not ask for, the "
      f"first {rest[0]!r}: another model than its config says."
    )
  return layout.tree(found)


def _tensors(folder: pathlib.Path) -> dict[str, Tensor]:
  """All tensors of a folder by name."""
  index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
  if not index.is_file():
    return _tensors_of(single)
  where = read_json(index).get("weight_map")
  if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
    raise ConfigError(f"{index} has no weight_map from tensors to files.")
  found = {}
  for name in sorted(set(where.values())):
    file = folder / name
    if pathlib.PurePath(name).name != name or name in (".", ".."):
      raise ConfigError(f"{index} names {name!r}, which is not a file of its folder.")
    if not file.is_file():
      raise ConfigError(f"{index} names {name!r}, which is missing.")
    found[name] = _tensors_of(file)
  for name, file in where.items():
    if name not in found[file]:
      raise ConfigError(f"{folder / file}: no tensor {name!r}, which {index.name} places there.")
  return {name: found[file][name] for name, file in where.items()}


def _tensors_of(file: pathlib.Path) -> dict[str, Tensor]:
  from safetensors import SafetensorError, safe_open

  try:
    opened = safe_open(str(file), "np")
    slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
  except SafetensorError as error:
    raise ConfigError(
      f"{file} is not a whole safetensors file ({error}): fetch or train it again."
    ) from None
  found = {}
  for name, part in slices.items():
    if part.get_dtype() not in _DTYPES and not _IGNORED.search(name):
      raise ConfigError(
        f"{file}: tensor {name!r} is {part.get_dtype()}; only {', '.join(_DTYPES)} are read."
      )
    dtype = np.dtype(jax.numpy.dtype(_DTYPES.get(part.get_dtype(), "float32")))
    shape = tuple(part.get_shape())
    found[name] = Tensor(shape, dtype, part.__getitem__, str(file))
  return found


def _named_as_in_the_table(rows, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
  """Tensors under the table's names: files leave out a prefix, or put another in front."""
  prefix, _, tail = rows[0].name.partition(".")
  for name in tensors:
    if name.endswith(tail) and name != rows[0].name:
      theirs = name.removesuffix(tail)
      return {
        (
          f"{prefix}.{n.removeprefix(theirs)}"
          if n.startswith(theirs) and n != "lm_head.weight"
          else n
        ): t
        for n, t in tensors.items()
      }
  return tensors


def save(
  path: pathlib.Path, params: Any, arch, dtype: str = "bfloat16", *, shard: int = SHARD
) -> str:
  """Writes a folder that transformers loads, in files of at most `shard` bytes or one tensor each.

  Returns:
    The family.

  Raises:
    ConfigError: no family has this architecture.
  """
  from safetensors.numpy import save_file

  family, stored = hf_config.encode(arch)
  path.mkdir(parents=True, exist_ok=True)
  for old in (*path.glob("*.safetensors"), *path.glob("*.safetensors.index.json")):
    old.unlink()  # those of another model
  kind = np.dtype(jax.numpy.dtype(dtype))
  tensors = layout.theirs(FAMILIES[family].rows, layout.paths(params), arch)
  tensors = {name: x.astype(kind) for name, x in tensors.items()}
  files: list[dict[str, np.ndarray]] = [{}]
  for name, x in tensors.items():
    if files[-1] and sum(y.nbytes for y in files[-1].values()) + x.nbytes > shard:
      files.append({})
    files[-1][name] = x
  names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
  names = names if len(files) > 1 else ["model.safetensors"]
  for name, part in zip(names, files, strict=True):
    save_file(part, str(path / name), metadata=dict(format="pt"))
  if len(files) > 1:
    where = {t: name for name, part in zip(names, files, strict=True) for t in part}
    index = dict(
      metadata=dict(total_size=sum(x.nbytes for x in tensors.values())), weight_map=where
    )
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
  stored["dtype"] = stored["torch_dtype"] = dtype
  (path / "config.json").write_text(json.dumps(stored, indent=2) + "\n")
  return family
