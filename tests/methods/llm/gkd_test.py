"""GKD between its limits: data alone, the student's own text alone."""

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import config as config_lib
from distill_jax import method as method_lib

PROMPT = 8  # of the smoke config, in rows of 17 tokens


def one_step(name, *overrides, mask=None):
  overrides = ("optim.schedule=constant", "optim.name=sgd", "optim.lr=1.0", *overrides)
  config = config_lib.load(f"experiments/llm/{name}.py:smoke", overrides)
  method = method_lib.load("methods", config.method.name).make(config)
  state, frozen = method.init(jax.random.key(0), {})
  tokens = jax.random.randint(jax.random.key(1), (8, 17), 0, 256)
  batch = dict(tokens=tokens, mask=jnp.ones((8, 16), bool) if mask is None else mask)
  return jax.jit(method.step)(state, frozen, batch, jax.random.key(3))


def test_off_policy_it_is_distillation_on_the_continuations():
  kind = "divergence.kind.name=generalized_js"
  off, metrics = one_step("gkd", "method.on_policy=0.0")
  continuation = jnp.broadcast_to(jnp.arange(16) >= PROMPT - 1, (8, 16))
  kd, expected = one_step("kd", kind, mask=continuation)
  np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    off["student"],
    kd["student"],
  )


def test_on_policy_it_scores_every_generated_token_and_no_other():
  _, metrics = one_step("gkd", "method.on_policy=1.0")
  assert metrics["on_policy"] == (1, 1)
  assert metrics["loss"][1] == 8 * (17 - PROMPT)


def test_on_policy_text_does_not_depend_on_the_datas_continuation():
  config = config_lib.load("experiments/llm/gkd.py:smoke", ("method.on_policy=1.0",))
  method = method_lib.load("methods", config.method.name).make(config)
  state, frozen = method.init(jax.random.key(0), {})
  step, losses = jax.jit(method.step), []
  tokens = jax.random.randint(jax.random.key(1), (8, 17), 0, 256)
  for other in (tokens, tokens.at[:, PROMPT:].set(7), tokens.at[:, 0].set(7)):
    batch = dict(tokens=other, mask=jnp.ones((8, 16), bool))
    losses.append(float(step(state, frozen, batch, jax.random.key(3))[1]["loss"][0]))
  assert losses[0] == losses[1] != losses[2]
