"""How well experts know test images: `accuracy`, the mean over them, and `worst`, the least."""

import functools

import jax
import jax.numpy as jnp

from distill_jax import method as method_lib
from distill_jax.distilled import protocol


def make(config):
  held_out = method_lib.load("data", config.data.name).held_out(config, "test")
  accuracy = functools.partial(protocol.accuracy, config.models.student)

  @jax.jit
  def measure(experts):
    each = jax.lax.map(lambda params: accuracy(params, *held_out), experts)
    return dict(accuracy=jnp.mean(each), worst=jnp.min(each))

  def evaluate(state, frozen):
    return {name: float(value) for name, value in measure(state["student"]).items()}

  return evaluate
