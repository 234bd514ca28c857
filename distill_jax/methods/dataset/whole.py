"""The whole real training set in place of a distilled one: the student is all of its rows.

No method of a paper; steps change nothing. See selection.py.
"""

import jax.numpy as jnp

from distill_jax.method import Method


def make(config) -> Method:
  def init(key, pretrained):
    real = pretrained["real"]
    rows = jnp.arange(len(real.x), dtype=jnp.int32)
    return dict(step=jnp.int32(0), student=dict(rows=rows)), dict(real=real)

  def step(state, frozen, batch, key):
    return dict(state, step=state["step"] + 1), {}

  return Method(init, step)
