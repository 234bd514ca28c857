"""DisBack's two stages in one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax.methods.diffusion import disback


@pytest.mark.slow
def test_first_the_way_is_laid_then_the_student_walks_back():
  overrides = ("method.degradation=4", "method.checkpoints=3", "method.hold=2")
  config = config_lib.load("experiments/diffusion/disback.py:smoke", overrides)
  method = method_lib.load("methods", config.method.name).make(config)
  start, frozen = method.init(jax.random.key(0), {})
  batch = dict(x=jnp.ones((16, 2)), label=jnp.arange(16) % 5)
  step, state, kept, targets = jax.jit(method.step), start, {}, []
  for t in range(9):
    state, metrics = step(state, frozen, batch, jax.random.key(t))
    kept[t + 1] = state
    targets.append(int(metrics["target"][0]))
    assert (metrics["loss"][1] > 0) == (t >= 4)
  same = jax.tree.map(np.array_equal, kept[4]["student"], start["student"])
  assert all(jax.tree.leaves(same))
  assert not np.array_equal(
    state["student"]["outputs"]["kernel"], start["student"]["outputs"]["kernel"]
  )
  for k, t in ((1, 2), (2, 4)):
    jax.tree.map(np.testing.assert_array_equal, disback.pick(state["way"], k), kept[t]["fake"])
  jax.tree.map(np.testing.assert_array_equal, disback.pick(state["way"], 0), start["fake"])
  assert targets == [2, 2, 2, 2, 2, 2, 1, 1, 0]
  assert int(state["step"]) == 9


def test_the_optimum_has_no_gradient(exact):
  overrides = ("method.degradation=0", "method.hold=1")
  state = dict(step=jnp.int32(9))  # the target is the teacher
  student, fake = exact.network(exact.consistency), exact.network(exact.denoiser)
  run = exact.play("disback", overrides, state=state, student=student, fake=fake)
  assert run.metrics["target"] == 0
  assert run.metrics["score_gap"] < 1e-10 and run.grad_norm < 1e-4
