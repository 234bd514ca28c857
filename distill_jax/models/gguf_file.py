"""GGUF files: metadata and tensors of llama.cpp's format, the latter dequantised as they are read.

The header is read here rather than by the gguf package's reader, which takes many seconds for a
vocabulary of 262,144 tokens; the package knows the kinds of blocks and how each is dequantised.
Every length is checked against the size of the file before it is believed.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

import functools
import math
import mmap
import pathlib
import re
import struct
from typing import Any, NamedTuple

import numpy as np

from distill_jax.config import ConfigError, did_you_mean
from distill_jax.models import huggingface, transformer
from distill_jax.models.families import FAMILIES
from distill_jax.models.hf_config import set_sliding
from distill_jax.models.layout import Tensor

# general.architecture: family; a Mistral calls itself llama
ARCHITECTURES = dict(
  llama="llama", qwen2="qwen2", qwen3="qwen3", gemma2="gemma2", gemma3="gemma3_text", gpt2="gpt2"
)
# ours: the name behind "<architecture>."
KEYS = dict(
  layers="block_count",
  width="embedding_length",
  heads="attention.head_count",
  mlp_width="feed_forward_length",
)
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class File(NamedTuple):
  """A parsed file: metadata by key, and tensors by name."""

  metadata: dict[str, Any]
  tensors: dict[str, Tensor]


def parse(path: pathlib.Path) -> File:
  """Reads the header, once for each version of a file.

  Raises:
    ConfigError: not a whole GGUF file.
  """
  stat = path.stat()
  return _parse(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4)
def _parse(path: pathlib.Path, mtime: int, size: int) -> File:
  try:
    with path.open("rb") as file:
      header = _Header(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
      return _whole(path, header, size)
  except (struct.error, ValueError, UnicodeDecodeError) as error:
    if isinstance(error, ConfigError):
      raise
    raise ConfigError(f"{path} is not a whole GGUF file ({error}): fetch it again.") from None


class _Header:
  """A place in a file, which moves on as values are read."""

  def __init__(self, buffer):
    self.buffer, self.at = buffer, 0

  def scalars(self, code: str, count: int = 1) -> tuple:
    end = self.at + struct.calcsize("<" + code) * count
    if end > len(self.buffer):
      raise ValueError(f"it ends at byte {len(self.buffer):,} within its header")
    values = struct.unpack_from(f"<{count}{code}", self.buffer, self.at)
    self.at = end
    return values

  def string(self) -> str:
    (length,) = self.scalars("Q")
    if self.at + length > len(self.buffer):
      raise ValueError(f"it ends at byte {len(self.buffer):,} within its header")
    self.at += length
    return self.buffer[self.at - length : self.at].decode()

  def value(self, kind: int) -> Any:
    if kind == _STRING:
      return self.string()
    if kind == _ARRAY:
      (inner,), (count,) = self.scalars("I"), self.scalars("Q")
      if inner in _SCALARS:
        return list(self.scalars(_SCALARS[inner], count))
      if inner != _STRING:
        raise ValueError(f"an array of type {inner}")
      return [self.string() for _ in range(count)]
    if kind not in _SCALARS:
      raise ValueError(f"a value of type {kind}")
    return self.scalars(_SCALARS[kind])[0]


def _whole(path: pathlib.Path, header: _Header, size: int) -> File:
  if header.buffer[:4] != b"GGUF":
    raise ValueError("it does not begin with GGUF")
  header.at = 4
  (version,), (tensors, values) = header.scalars("I"), header.scalars("Q", 2)
  if version not in (2, 3):
    raise ValueError(f"version {version}; 2 and 3 are read")
  metadata: dict[str, Any] = {}
  for _ in range(values):
    key = header.string()
    metadata[key] = header.value(header.scalars("I")[0])
  described = []
  for _ in range(tensors):
    name, (dimensions,) = header.string(), header.scalars("I")
    shape = header.scalars("Q", dimensions)[::-1]
    described.append((name, shape, *header.scalars("I"), *header.scalars("Q")))
  alignment = metadata.get("general.alignment", 32)
  begin = -(-header.at // alignment) * alignment
  return File(
    metadata,
    {
      name: _tensor(path, name, shape, kind, begin + offset, size)
      for name, shape, kind, offset in described
    },
  )


def _tensor(path, name, shape, kind, offset, size) -> Tensor:
  try:
    import gguf
  except ImportError:
    raise ConfigError(f"{path}: GGUF needs: pip install 'distill_jax[pretrained]'.") from None
  kind = gguf.GGMLQuantizationType(kind)
  block, width = gguf.GGML_QUANT_SIZES[kind]
  if not shape or shape[-1] % block:
    raise ValueError(f"tensor {name!r} of shape {list(shape)} in blocks of {block}")
  rows, row = math.prod(shape[:-1]), shape[-1] // block * width
  if offset + rows * row > size:
    raise ValueError(f"it ends at byte {size:,} within tensor {name!r}")

  def read(region):
    data = np.memmap(path, np.uint8, "r", offset, (rows, row))
    if len(shape) == 1:
      return gguf.quants.dequantize(data, kind)[0][region]
    return gguf.quants.dequantize(data[region[0]], kind)[:, region[1]]

  return Tensor(tuple(shape), np.dtype(np.float32), read, str(path))


def load(path: pathlib.Path) -> dict[str, Any]:
  """The parameters as a nested dict of `layout.Leaf`, float32, checked and not yet read."""
  file = parse(path)
  arch = architecture(path)
  rows = FAMILIES[_family(path, file.metadata)].gguf
  return huggingface.leaves(rows, file.tensors, arch, ignored=re.compile(r"^rope_freqs\.weight$"))


def _family(path, metadata) -> str:
  name = str(metadata.get("general.architecture"))
  if name not in ARCHITECTURES:
    known = did_you_mean(name, ARCHITECTURES)
    raise ConfigError(f"{path}: unknown general.architecture {name!r}.{known}")
  return ARCHITECTURES[name]


def architecture(path: pathlib.Path):
  """The transformer config that the metadata describes.

  Raises:
    ConfigError: a family, a key or a value that the transformer does not know.
  """
  file = parse(path)
  family = _family(path, file.metadata)
  name = file.metadata["general.architecture"]

  def get(key, default=None):
    value = file.metadata.get(f"{name}.{key}", default)
    if value is None:
      raise ConfigError(f"{path}: no key '{name}.{key}'.")
    if isinstance(value, list) and len(set(value)) == 1:
      value = value[0]  # one value for each layer
    if isinstance(value, (list, str)) and key != "rope.scaling.type":
      raise ConfigError(f"{path}: '{name}.{key}' differs between layers, which is not supported.")
    return value

  if "token_embd.weight" not in file.tensors:
    raise ConfigError(f"{path}: no tensor 'token_embd.weight'.")
  arch = transformer.default_config()
  arch.update(FAMILIES[family].fixed)
  for ours, theirs in KEYS.items():
    arch[ours] = int(get(theirs))
  arch.vocab_size = file.tensors["token_embd.weight"].shape[0]
  arch.tie_embeddings = "output.weight" not in file.tensors
  arch.kv_heads = int(get("attention.head_count_kv", arch.heads))
  arch.head_dim = int(get("attention.key_length", arch.width // arch.heads))
  norm = "layer_norm_epsilon" if family == "gpt2" else "layer_norm_rms_epsilon"
  arch.norm_eps = float(get(f"attention.{norm}"))
  arch.max_positions = int(get("context_length", arch.max_positions))
  arch.rope_theta = float(get("rope.freq_base", 10_000.0))
  if family.startswith("gemma"):
    _gemma(arch, family, get)
  _rope_scaling(arch, path, file, get)
  return arch


def _gemma(arch, family, get):
  """What llama.cpp knows of Gemma without being told by the file."""
  arch.logit_softcap = float(get("final_logit_softcapping", 0.0))
  arch.attention_softcap = float(get("attn_logit_softcapping", 0.0))
  largest = arch.layers == (46 if family == "gemma2" else 62)  # 27B
  arch.query_scalar = float(arch.width // arch.heads if largest else arch.head_dim)
  pattern = 2 if family == "gemma2" else 6
  if family == "gemma3_text":
    arch.rope_local_theta = float(get("rope.freq_base_swa", 10_000.0))
  sliding = [(i + 1) % pattern != 0 for i in range(arch.layers)]
  set_sliding(arch, int(get("attention.sliding_window")), sliding)


def _rope_scaling(arch, path, file, get):
  kind = get("rope.scaling.type", "none")
  if kind == "linear":
    arch.rope_scaling, arch.rope_factor = "linear", float(get("rope.scaling.factor"))
  elif kind != "none":
    raise ConfigError(f"{path}: rope.scaling.type {kind!r} is not supported.")
  if "rope_freqs.weight" not in file.tensors:
    return
  # the factors that Llama 3.1 divides its rates by, of which the largest is its rope_factor
  from distill_jax.models import attention

  factors = file.tensors["rope_freqs.weight"].read((slice(None),))
  arch.rope_scaling, arch.rope_factor = "llama3", float(np.max(factors))
  plain = arch.copy_and_resolve_references()
  plain.rope_scaling = "none"
  ours = attention.variation(plain)[2][0] / attention.variation(arch)[2][0]
  if ours.shape != factors.shape or not np.allclose(ours, factors, rtol=1e-3):
    raise ConfigError(f"{path}: rope_freqs.weight is not the scaling of Llama 3.1.")
