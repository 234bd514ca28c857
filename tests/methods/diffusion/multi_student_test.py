"""Each class has its own student."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax.diffusion import network as network_lib
from distill_jax.methods.diffusion import multi_student
from distill_jax.models import mlp


@pytest.mark.slow
def test_a_label_is_answered_by_its_own_copy():
  config = config_lib.load("experiments/diffusion/multi_student.py:smoke,students=2")
  network = network_lib.make(config, "student")
  params = network.init(jax.random.key(0))
  x, label = jax.random.normal(jax.random.key(1), (5, 2)), jnp.arange(5)
  answer, _ = network.raw(params, x, jnp.ones(5), {"label": label})
  for copy, rows in ((0, slice(0, 3)), (1, slice(3, 5))):
    own = jax.tree.map(lambda a: a[copy], params)
    alone, _ = mlp.apply(
      config.models.student, own, x[rows], jnp.ones(5)[rows], {"label": label[rows]}
    )
    np.testing.assert_allclose(answer[rows], alone, rtol=1e-5, atol=1e-6)


def test_copies_begin_as_the_start_and_only_the_asked_one_moves():
  config = config_lib.load("experiments/diffusion/multi_student.py:smoke")
  given = dict(start=network_lib.make(config, "fake").init(jax.random.key(7)))
  method = method_lib.load("methods", config.method.name).make(config)
  first, frozen = method.init(jax.random.key(0), given)
  kernel = given["start"]["outputs"]["kernel"]
  np.testing.assert_array_equal(first["student"]["outputs"]["kernel"], np.stack(5 * [kernel]))
  batch = dict(x=jnp.ones((16, 2)), label=jnp.full(16, 3))
  state, _ = jax.jit(method.step)(first, frozen, batch, jax.random.key(1))
  state, _ = jax.jit(method.step)(state, frozen, batch, jax.random.key(2))
  moved = jnp.any(state["student"]["outputs"]["kernel"] != kernel, axis=(1, 2))
  assert moved.tolist() == [False, False, False, True, False]


def test_without_weights_nothing_is_stacked():
  assert multi_student.copied({}, 3) == {}
