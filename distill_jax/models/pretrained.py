"""Models in files: our own folders, Hugging Face folders, and GGUF files.

  ours          config.json (the architecture), model.safetensors, tokenizer.json
  Hugging Face  config.json with a `model_type`, safetensors in one file or several (huggingface.py)
  GGUF          one file, with everything in it (gguf_file.py)

`load` gives our own as host arrays, and the others as leaves of which a device reads its own part
(`put`), so that no host ever holds a whole model. No pickle: safetensors checks its header and
lengths before anything is allocated.
"""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from distill_jax.config import ROOT, ConfigError, did_you_mean
from distill_jax.models import gguf_file, hf_config, huggingface, layout, transformer

RUN_KEYS = (  # of this run, not of the architecture
  *("dtype", "param_dtype", "remat", "attention", "weights", "lora_rank", "lora_alpha"),
)


def folder(path: str) -> pathlib.Path:
  """The folder or the GGUF file of a model, relative to here or to the project."""
  for candidate in (pathlib.Path(path).expanduser(), ROOT / path):
    if candidate.suffix == ".gguf" and candidate.is_file():
      return candidate
    weights = ("model.safetensors", "model.safetensors.index.json")
    if (candidate / "config.json").is_file() and any((candidate / w).is_file() for w in weights):
      return candidate
  raise ConfigError(
    f"No model at {path!r}: a folder with config.json and model.safetensors, or a .gguf file."
  )


def architecture(config, name: str) -> ConfigDict:
  """The transformer config of the model `name`: that of its files, or `config.models[name]` when it
  starts from random."""
  given = config.models[name]
  if not config.pretrained[name]:
    return given
  arch = read_architecture(config.pretrained[name])
  arch.update({key: given[key] for key in RUN_KEYS})
  return arch


def read_architecture(path: str) -> ConfigDict:
  """The transformer config of a model's files."""
  found = folder(path)
  if found.is_file():
    return gguf_file.architecture(found)
  file = found / "config.json"
  stored = huggingface.read_json(file)
  if "model_type" in stored:
    return hf_config.decode(stored, str(file))[1]
  arch = transformer.default_config()
  for key, value in stored.items():
    if key not in arch:
      raise ConfigError(f"{file}: unknown key {key!r}." + did_you_mean(key, arch.keys()))
    arch[key] = tuple(value) if isinstance(value, list) else value
  return arch


def load(path: str) -> dict[str, Any]:
  """The parameters as a nested dict of host arrays, or of `layout.Leaf` for foreign files."""
  from safetensors import SafetensorError
  from safetensors.flax import load_file

  found = folder(path)
  if found.is_file():
    return gguf_file.load(found)
  if "model_type" in huggingface.read_json(found / "config.json"):
    return huggingface.load(found)
  file = found / "model.safetensors"
  try:
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
      flat = jax.device_get(load_file(str(file)))
  except SafetensorError as error:
    raise ConfigError(
      f"{file} is not a whole safetensors file ({error}): fetch or train it again."
    ) from None
  return layout.tree(flat, ".")


def put(params: Any, shardings: Any) -> Any:
  """Leaves as device arrays; each device reads the part that it holds. Host arrays stay."""

  def array(x, sharding):
    if not isinstance(x, layout.Leaf):
      return x
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x.read(index or ()))

  return jax.tree.map(array, params, shardings)


def read(params: Any) -> Any:
  """Leaves as host arrays, whole."""
  whole = lambda x: x.read((slice(None),) * len(x.shape)) if isinstance(x, layout.Leaf) else x  # noqa: E731
  return jax.tree.map(whole, params)


def save(path: pathlib.Path, params: Any, arch: ConfigDict, dtype: str) -> None:
  """Writes parameters in `dtype` and the architecture into a folder of our own."""
  from safetensors.flax import save as serialize

  path.mkdir(parents=True, exist_ok=True)
  flat = {
    name: jax.numpy.asarray(np.asarray(x), dtype)
    for name, x in layout.paths(params, separator=".").items()
  }
  (path / "model.safetensors").write_bytes(serialize(flat))
  stored = {key: value for key, value in arch.items() if key not in RUN_KEYS}
  (path / "config.json").write_text(json.dumps(stored, indent=2) + "\n")
