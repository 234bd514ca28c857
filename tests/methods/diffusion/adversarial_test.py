"""The GAN on frozen features: its first step, and what stays frozen."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import method as method_lib


def two_steps(word, *overrides):
  config = config_lib.load(f"experiments/diffusion/adversarial.py:smoke,{word}", overrides)
  method = method_lib.load("methods", config.method.name).make(config)
  first, frozen = method.init(jax.random.key(0), {})
  x = jax.random.normal(jax.random.key(1), (16, 2))
  batch, state, seen = dict(x=x, label=jnp.arange(16) % 5), first, []
  step = jax.jit(method.step)
  for t in range(2):
    state, metrics = step(state, frozen, batch, jax.random.key(t))
    seen.append({k: float(total / count) for k, (total, count) in metrics.items()})
  return first, state, seen


@pytest.mark.parametrize("loss, start", [("logistic", math.log(2)), ("hinge", 1.0)])
def test_a_head_that_knows_nothing_is_at_even_odds(loss, start):
  _, _, seen = two_steps("variant=ladd", f"method.loss={loss}")
  assert seen[0]["loss"] == pytest.approx(start if loss == "logistic" else 0.0, abs=1e-6)
  assert seen[0]["grad_norm"] < 1e-6 < seen[1]["grad_norm"]  # the head moves first
  assert seen[0]["discriminator_loss"] == pytest.approx(2 * start, rel=1e-5)


def test_parameters_that_the_regex_names_stay():
  first, last, _ = two_steps("variant=frozen")
  same = jax.tree.map(np.array_equal, first["student"], last["student"])
  assert all(jax.tree.leaves(same["layers"]["second"]))
  assert not any(jax.tree.leaves(same["layers"]["first"]))


@pytest.mark.slow
def test_the_teachers_denoised_image_pulls_where_it_is_weighed():
  _, _, seen = two_steps("variant=add")
  assert seen[0]["loss"] > 0 and seen[0]["grad_norm"] > 1e-4
