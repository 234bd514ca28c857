"""Model folders: `model.safetensors`, `config.json` (the architecture) and, for language models,
`tokenizer.json`.

No pickle: safetensors checks its header and lengths before anything is allocated.
"""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from distill_jax.config import ROOT, ConfigError, did_you_mean
from distill_jax.models import transformer

RUN_KEYS = ("dtype", "param_dtype", "remat", "attention")  # of this run, not of the architecture


def folder(path: str) -> pathlib.Path:
  """The folder of a model, relative to here or to the project."""
  for candidate in (pathlib.Path(path).expanduser(), ROOT / path):
    if (candidate / "config.json").is_file() and (candidate / "model.safetensors").is_file():
      return candidate
  raise ConfigError(f"No model at {path!r}: a folder with config.json and model.safetensors.")


def architecture(config, name: str) -> ConfigDict:
  """The transformer config of the model `name`: its folder's, or `config.models[name]` when it
  starts from random."""
  given = config.models[name]
  if not config.pretrained[name]:
    return given
  file = folder(config.pretrained[name]) / "config.json"
  try:
    stored = json.loads(file.read_text())
  except json.JSONDecodeError as error:
    raise ConfigError(f"{file} is not JSON: {error}.") from None
  arch = transformer.default_config()
  for key, value in stored.items():
    if key not in arch:
      raise ConfigError(f"{file}: unknown key {key!r}." + did_you_mean(key, arch.keys()))
    arch[key] = value
  arch.update({key: given[key] for key in RUN_KEYS})
  return arch


def load(path: str) -> dict[str, Any]:
  """The parameters of a folder as a nested dict of host arrays."""
  from safetensors import SafetensorError
  from safetensors.flax import load_file

  file = folder(path) / "model.safetensors"
  try:
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
      flat = jax.device_get(load_file(str(file)))
  except SafetensorError as error:
    raise ConfigError(
      f"{file} is not a whole safetensors file ({error}): fetch or train it again."
    ) from None
  tree: dict[str, Any] = {}
  for name, value in flat.items():
    *parents, last = name.split(".")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  return tree


def save(path: pathlib.Path, params: Any, arch: ConfigDict, dtype: str) -> None:
  """Writes parameters in `dtype` and the architecture into a folder."""
  from safetensors.flax import save as serialize

  path.mkdir(parents=True, exist_ok=True)
  flat = {
    jax.tree_util.keystr(name, simple=True, separator="."): jax.numpy.asarray(np.asarray(x), dtype)
    for name, x in jax.tree_util.tree_leaves_with_path(params)
  }
  (path / "model.safetensors").write_bytes(serialize(flat))
  stored = {key: value for key, value in arch.items() if key not in RUN_KEYS}
  (path / "config.json").write_text(json.dumps(stored, indent=2) + "\n")
