"""RCIG's gradient against one by a dense Hessian, and what its parts are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax import train
from distill_jax.data import image_set
from distill_jax.losses import kernels
from distill_jax.methods.dataset import rcig
from distill_jax.models import convnet

PATH = "experiments/dataset/rcig.py"
GIVEN = convnet.default_config()
GIVEN.update(width=2, depth=1, norm="none", num_classes=3)


def drawn(shape, seed):
  return jax.random.normal(jax.random.key(seed), shape)


def test_linearized_is_the_change_of_outputs():
  params, x = convnet.init(GIVEN, (2, 2, 1), jax.random.key(0)), drawn((4, 2, 2, 1), 1)
  theta = jax.tree.map(lambda w: 0.01 * jnp.ones_like(w), rcig.tangent(params))
  features, outputs = rcig.linearized(GIVEN, params, theta, x)
  moved = dict(jax.tree.map(jnp.add, rcig.tangent(params), theta))
  moved = jax.tree.map(jnp.zeros_like, params) | moved
  moved["head"]["kernel"] = jnp.zeros_like(params["head"]["kernel"])
  moved = jax.tree.map(lambda w, d: w + 1e-2 * d, params, moved)
  logits, at_base = convnet.apply(GIVEN, params, x)
  np.testing.assert_array_equal(features, at_base)
  change = (convnet.apply(GIVEN, moved, x)[0] - logits) / 1e-2
  np.testing.assert_allclose(outputs, change, rtol=2e-2, atol=2e-4)


@pytest.mark.slow
def test_implicit_gradient_is_that_of_a_dense_hessian():
  """With a product that has converged, where the limit of norms does not bind or is applied too."""
  with jax.enable_x64(True):
    shape, ridge = (2, 2, 1), 0.3
    params = jax.tree.map(
      lambda w: w.astype(jnp.float64), convnet.init(GIVEN, shape, jax.random.key(0))
    )
    x, y_t = drawn((6, *shape), 1), jnp.eye(3)[jnp.array([0, 1, 2, 0, 1, 2])] - 1 / 3
    learned = dict(
      images=drawn((5, *shape), 2), labels=drawn((5, 3), 3), log_temperature=jnp.float64(0.2)
    )

    def inner(data, theta):
      features, outputs = rcig.linearized(GIVEN, params, theta, data["images"])
      square = sum(jnp.sum(w**2) for w in jax.tree.leaves(theta))
      return kernels.rcig_inner(features, outputs, data["labels"], square, ridge=ridge)

    def outer(learned, theta):
      s = rcig.linearized(GIVEN, params, theta, learned["images"])
      t = rcig.linearized(GIVEN, params, theta, x)
      p = kernels.rcig_outer_prediction(*s, learned["labels"], *t, ridge=ridge)
      return kernels.rcig_outer(p, y_t, learned["log_temperature"])

    zero, back = ravel_pytree(rcig.tangent(params))
    hessian = jax.hessian(lambda w: inner(learned, back(w)))(zero)

    def best(learned):
      """The least of the quadratic, by its Hessian at zero."""
      of = lambda w: inner(learned, back(w))  # noqa: E731
      return -jnp.linalg.solve(jax.hessian(of)(zero), jax.grad(of)(zero))

    theta = best(learned)
    np.testing.assert_allclose(jax.grad(lambda w: inner(learned, back(w)))(theta), 0, atol=1e-12)
    want = jax.grad(lambda learned: outer(learned, back(best(learned))))(learned)
    direct = jax.grad(outer)(learned, back(theta))
    through = jax.tree.map(jnp.subtract, want, direct)
    assert np.linalg.eigvalsh(hessian).min() > 0

    value, got, residual = rcig.implicit_gradient(
      outer, inner, learned, back(theta), steps=4000, learning_rate=0.02
    )
    np.testing.assert_allclose(value, outer(learned, back(theta)))
    assert residual < 0
    for name in learned:
      norms = [jnp.linalg.norm(tree[name]) for tree in (through, direct)]
      limit = jnp.minimum(1, norms[1] / jnp.where(norms[0] > 0, norms[0], 1))
      expected = direct[name] + limit * through[name]
      np.testing.assert_allclose(got[name], expected, rtol=1e-3, atol=1e-5)


def test_training_finds_a_quadratics_least():
  inner = lambda theta: jnp.sum((theta - 1) ** 2)  # noqa: E731
  theta, value = rcig.trained(inner, jnp.zeros(3), 300, 0.05)
  np.testing.assert_allclose(theta, 1, atol=1e-3)
  assert value < 1e-5


@functools.cache
def prepared():
  config = config_lib.load(f"{PATH}:smoke", ("method.pool=2",))
  method = method_lib.load("methods", config.method.name).make(config)
  return method, *method.init(jax.random.key(0), dict(real=image_set.whole(config)))


@pytest.mark.slow
def test_a_step_learns_images_labels_and_temperature_and_trains_one_network():
  method, state, frozen = prepared()
  new, metrics = jax.jit(method.step)(state, frozen, {}, jax.random.key(1))
  ages = np.asarray(new["pool"]["age"])
  assert sorted(ages > 0) == [False, True]
  for a, b in ((state, new), (state["student"], new["student"])):
    for name in a.keys() & {"images", "labels", "log_temperature"}:
      assert jnp.any(a[name] != b[name]), name
  warm = jnp.abs(new["log_temperature"] - state["log_temperature"])
  step = jnp.max(jnp.abs(new["student"]["images"] - state["student"]["images"]))
  np.testing.assert_allclose(warm / step, 10, rtol=0.05)  # Adam's first step has the rate's size
  assert metrics["skipped"][0] == 0


@pytest.mark.slow
def test_digits(tmp_path):
  results = train.run(config_lib.load(PATH), tmp_path)
  assert np.mean([results[f"distilled/accuracy@{i}"] for i in range(3)]) > 0.85  # random: 0.75
