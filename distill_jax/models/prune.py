"""Smaller models cut out of larger ones: fewer layers, heads, hidden units or channels.

What is cut is what matters least on some text. Importances are means over tokens:

  layer    1 - cosine(its input, its output): block influence [ShortGPT, eq. 1]
  head     norm of what it attends to
  unit     absolute activation of the MLP's hidden layer
  channel  absolute output of the norms before attention and of the last one; Minitron has those
           before the MLP too [the last three: Minitron, section 2.2]

The functions are pure: parameters and architecture in, parameters and architecture out.

References:
  Men et al., ShortGPT: Layers in Large Language Models are More Redundant Than You Expect
    (arXiv:2403.03853).
  Muralidharan et al., Compact Language Models via Pruning and Knowledge Distillation
    (arXiv:2407.14679): Minitron.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.models.attention import slides
from distill_jax.models.block import normalize
from distill_jax.models.families import FAMILIES
from distill_jax.models.hf_config import set_sliding
from distill_jax.models.transformer import Model

# path: a letter for each axis of an array of one layer
AXES = {row.path: row.ours.split() for family in FAMILIES.values() for row in family.rows}


class Importance(NamedTuple):
  """Means over tokens, float32."""

  layers: jax.Array  # [L]
  heads: jax.Array  # [L, H]
  units: jax.Array  # [L, F]
  channels: jax.Array  # [D]


def importance(model: Model, params: Any, arch, tokens: jax.Array) -> Importance:
  """What matters on tokens int[B, T]."""
  hidden, values = model.hidden(params, tokens, features=True)
  first = params["embed"]["tokens"][tokens] * (arch.width**0.5 if arch.scale_embeddings else 1.0)
  if arch.kind == "gpt2":
    first = first + params["embed"]["positions"][: tokens.shape[1]]
  after = values["residual"].astype(jnp.float32)
  before = jnp.concatenate([first[None].astype(jnp.float32), after[:-1]])
  cosine = jnp.sum(before * after, -1) / (
    jnp.linalg.norm(before, axis=-1) * jnp.linalg.norm(after, axis=-1)
  )
  layers = params["layers"]
  biases = layers.get("attention_norm_bias", [None] * arch.layers)
  normed = [
    normalize(arch, x, w, b)
    for x, w, b in zip(before, layers["attention_norm"], biases, strict=True)
  ]
  channels = [jnp.mean(jnp.abs(x), (0, 1)) for x in (*normed, hidden.astype(jnp.float32))]
  return Importance(
    layers=jnp.mean(1 - cosine, (1, 2)),
    heads=jnp.mean(jnp.linalg.norm(values["heads"].astype(jnp.float32), axis=-1), (1, 2)),
    units=jnp.mean(jnp.abs(values["units"].astype(jnp.float32)), (1, 2)),
    channels=jnp.mean(jnp.stack(channels), 0),
  )


def ranked(values: Any, count: int) -> np.ndarray:
  """Indices of the `count` largest along the last axis, in their order.

  Raises:
    ValueError: there are not so many.
  """
  most = np.shape(values)[-1]
  if not 0 < count <= most:
    raise ValueError(f"{count} of {most} can't be kept")
  return np.sort(np.argsort(-np.asarray(values), axis=-1, kind="stable")[..., :count], axis=-1)


def keep_layers(params: Any, arch, kept: Sequence[int]) -> tuple[Any, Any]:
  """The layers with these numbers, each as it was: one that slid still slides."""
  sliding = slides(arch)
  arch = arch.copy_and_resolve_references()
  set_sliding(arch, arch.sliding_window, [sliding[i] for i in kept])
  arch.layers = len(kept)
  layers = jax.tree.map(lambda x: x[np.asarray(kept)], params["layers"])
  return dict(params, layers=layers), arch


def drop_units(params: Any, arch, units: jax.Array, size: int) -> tuple[Any, Any]:
  """The `size` hidden units of the largest importance [L, F] of each layer's MLP."""
  arch = arch.copy_and_resolve_references()
  arch.mlp_width = size
  return _take(params, "F", ranked(units, size)), arch


def drop_heads(params: Any, arch, heads: jax.Array, size: int) -> tuple[Any, Any]:
  """`size` heads of the largest importance [L, H] of each layer.

  Where a key serves several queries: as many queries of each key if that comes out even, else whole
  groups of a key and its queries, ranked by their sum.

  Raises:
    ValueError: neither comes out even.
  """
  groups, each = arch.kv_heads, arch.heads // arch.kv_heads
  grouped = np.asarray(heads).reshape(arch.layers, groups, each)
  arch = arch.copy_and_resolve_references()
  arch.heads = size
  if each > 1 and size % groups == 0:
    best = ranked(grouped, size // groups) + np.arange(groups)[:, None] * each
    return _take(params, "H", best.reshape(arch.layers, size)), arch
  if size % each:
    raise ValueError(
      f"heads {size} is neither a multiple of the {groups} keys nor of the {each} queries of each"
    )
  kept = ranked(grouped.sum(-1), size // each)
  arch.kv_heads = size // each
  queries = kept[..., None] * each + np.arange(each)
  params = _take(params, "H", queries.reshape(arch.layers, size))
  return _take(params, "G", kept), arch


def drop_channels(params: Any, arch, channels: jax.Array, size: int) -> tuple[Any, Any]:
  """The `size` channels of the largest importance [D] of the residual stream.

  A norm divides by a mean over channels, so its weights are scaled by sqrt(D / size): dropping
  channels that are always 0 then changes nothing (but in GPT-2, whose norms subtract a mean). The
  same goes for embeddings that are multiplied by the root of the width; if they are the head too,
  the last norm makes up for it.
  """
  larger = (arch.width / size) ** 0.5
  kept = ranked(channels, size)
  plus = float(arch.norm_plus_one)
  tied = arch.scale_embeddings and arch.tie_embeddings

  def cut(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    for axis, letter in enumerate(AXES[name], x.ndim - len(AXES[name])):
      x = jnp.take(x, kept, axis) if letter == "D" else x
    if name == "embed/tokens" and arch.scale_embeddings:
      return x * larger
    if name.endswith("norm") and "D" in AXES[name] and not (name == "final_norm" and tied):
      return (x + plus) * larger - plus
    return x

  arch = arch.copy_and_resolve_references()
  arch.width = size
  return jax.tree_util.tree_map_with_path(cut, params), arch


def _take(params: Any, letter: str, kept: np.ndarray) -> Any:
  """The entries kept [L, n] of the axis that has this letter."""

  def cut(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if letter not in AXES[name]:
      return x
    axis = AXES[name].index(letter)
    return jnp.stack([jnp.take(layer, row, axis) for layer, row in zip(x, kept, strict=True)])

  return jax.tree_util.tree_map_with_path(cut, params)
