"""What a network of the diffusion family is told beside the image: time and conditions, as one
vector.

  e = W_2 silu(W_1 fourier(angle)) + sum of the embeddings of the conditions that the network knows

Conditions are those named in `config.conditions`: "label", "guidance", "second", "vector". All but
the label's begin at 0, so a network that is given one more condition still is what it was: a
teacher's weights start a student that also hears of guidance or of a second time.
"""

from typing import Any

import jax
import jax.numpy as jnp

CONDITIONS = ("label", "guidance", "second", "vector")
FREQUENCIES = 16  # of the Fourier features, from 1 to MAXIMUM
MAXIMUM = 32.0  # radians per radian of angle: the derivative in time stays of order 1


def init(config, key: jax.Array) -> dict[str, Any]:
  """config has width, conditions, num_classes (the table has one row more, of the null label) and
  vector_width."""
  if unknown := set(config.conditions) - set(CONDITIONS):
    raise ValueError(f"conditions: no {sorted(unknown)}, only {', '.join(CONDITIONS)}")
  keys = iter(jax.random.split(key, 2 + len(CONDITIONS)))
  width, normal = config.width, jax.random.normal

  def matrix(fan_in, fan_out):
    return normal(next(keys), (fan_in, fan_out)) / fan_in**0.5

  params = dict(time_1=matrix(2 * FREQUENCIES, width), time_2=matrix(width, width))
  if "label" in config.conditions:
    params["label"] = normal(next(keys), (config.num_classes + 1, width))
  for name in ("guidance", "second"):
    if name in config.conditions:
      params[f"{name}_1"] = matrix(2 * FREQUENCIES, width)
      params[f"{name}_2"] = jnp.zeros((width, width))
  if "vector" in config.conditions:
    params["vector"] = jnp.zeros((config.vector_width, width))
  return params


def apply(
  config, params: dict[str, Any], angle: jax.Array, condition: dict[str, jax.Array]
) -> jax.Array:
  """[B, width]. A label that is not given is the null label; a guidance that is not given is 1, a
  second time the first."""
  embedded = _of_scalar(params, "time", angle)
  if "label" in config.conditions:
    label = condition.get("label")
    null = params["label"][config.num_classes]
    embedded += null if label is None else params["label"][label]
  if "second" in config.conditions:
    embedded += _of_scalar(params, "second", condition.get("second", angle) - angle)
  if "guidance" in config.conditions:
    scale = condition.get("guidance", jnp.ones_like(angle))
    embedded += _of_scalar(params, "guidance", jnp.log(scale))
  if "vector" in config.conditions and "vector" in condition:
    embedded += condition["vector"] @ params["vector"]
  return embedded


def _of_scalar(params: dict[str, Any], name: str, x: jax.Array) -> jax.Array:
  frequencies = MAXIMUM ** (jnp.arange(FREQUENCIES, dtype=x.dtype) / (FREQUENCIES - 1))
  phases = x[:, None] * frequencies
  features = jnp.concatenate([jnp.cos(phases), jnp.sin(phases)], axis=-1)
  return jax.nn.silu(features @ params[f"{name}_1"]) @ params[f"{name}_2"]
