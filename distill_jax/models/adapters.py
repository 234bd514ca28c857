"""Low-rank factors beside the kernels of any network: W + scale A B, with A random and B at 0.

  matrix        W [in, out]        A [in, r]        B [r, out]
  stacked       W [L, in, out]     A [L, in, r]     B [L, r, out]
  convolution   W [h, w, in, out]  A [h, w, in, r]  B [r, out]

so that A B is a matrix product over the last axes in each case; of a convolution it is one to r
channels and then one of 1 x 1. Factors are a dict by path, such as "down/0/first/kernel".

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models (arXiv:2106.09685), section 4.1, whose
alpha / r is our scale.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp

Params = Any
Factors = dict[str, dict[str, jax.Array]]


def init(params: Params, key: jax.Array, rank: int, pattern: str) -> Factors:
  """Factors for every array of two to four axes whose path matches.

  Args:
    params: the network's.
    key: of A, whose entries have variance 1 / fan-in.
    rank: r.
    pattern: regular expression, searched for in paths such as layers/up/kernel.

  Raises:
    ValueError: nothing matches.
  """
  found = {path: x for path, x in _paths(params) if re.search(pattern, path) and 2 <= x.ndim <= 4}
  if not found:
    raise ValueError(f"no kernel matches the pattern {pattern!r}")
  keys = jax.random.split(key, len(found))
  return {path: _pair(key, x, rank) for key, (path, x) in zip(keys, found.items(), strict=True)}


def merge(params: Params, factors: Factors, scale: float = 1.0) -> Params:
  """The network's parameters with scale A B added to the kernels that have factors."""

  def merged(path, x):
    pair = factors.get(_name(path))
    return x if pair is None else x + scale * jnp.matmul(pair["a"], pair["b"]).astype(x.dtype)

  return jax.tree_util.tree_map_with_path(merged, params)


def _pair(key, kernel, rank):
  *before, fan_in, fan_out = kernel.shape
  stack = before if kernel.ndim == 3 else []
  inputs = fan_in if kernel.ndim < 4 else fan_in * before[0] * before[1]
  a = jax.random.normal(key, (*before, fan_in, rank), kernel.dtype) / inputs**0.5
  return dict(a=a, b=jnp.zeros((*stack, rank, fan_out), kernel.dtype))


def _paths(params):
  return [(_name(path), x) for path, x in jax.tree_util.tree_leaves_with_path(params)]


def _name(path):
  return jax.tree_util.keystr(path, simple=True, separator="/")
