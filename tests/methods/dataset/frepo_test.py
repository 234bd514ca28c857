"""FRePo's gradient against one that holds the drawn network's real features fixed; its pool."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax import train
from distill_jax.data import image_set
from distill_jax.distilled import pool as pool_lib
from distill_jax.models import convnet

PATH = "experiments/dataset/frepo.py"


def prepared(*overrides):
  config = config_lib.load(f"{PATH}:smoke", overrides)
  method = method_lib.load("methods", config.method.name).make(config)
  return config, method, *method.init(jax.random.key(0), dict(real=image_set.whole(config)))


def changed(old, new):
  """For each network of a pool, whether any of its parameters did."""
  leaves = zip(jax.tree.leaves(old["params"]), jax.tree.leaves(new["params"]), strict=True)
  each = [jnp.any((a != b).reshape(len(a), -1), axis=1) for a, b in leaves]
  return np.any(np.array(each), axis=0)


def test_only_the_drawn_network_is_trained():
  _, method, state, frozen = prepared("method.pool=4", "method.most=3")
  step = jax.jit(method.step)
  for t in range(12):
    new, _ = step(state, frozen, {}, jax.random.key(t))
    moved = changed(state["pool"], new["pool"])
    assert moved.sum() == 1
    i = int(np.argmax(moved))
    assert new["pool"]["age"][i] == (state["pool"]["age"][i] + 1) % 3
    for name in ("age", "opt"):
      jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.delete(a, i, 0), np.delete(b, i, 0)),
        state["pool"][name],
        new["pool"][name],
      )
    state = new


def test_a_network_of_full_age_is_drawn_anew():
  tx = optax.adam(0.1)
  draw = pool_lib.drawing(lambda key: jax.random.normal(key, (3,)), tx)
  pool = pool_lib.start(draw, jax.random.key(0), 2)
  key = jax.random.key(9)
  loss = lambda w: jnp.sum(w**2)  # noqa: E731
  new = pool_lib.update(pool, jnp.int32(1), loss, tx, draw, key, most=4, steps=jnp.int32(4))
  jax.tree.map(np.testing.assert_array_equal, pool_lib.take(new, 1), draw(key))
  jax.tree.map(np.testing.assert_array_equal, pool_lib.take(new, 0), pool_lib.take(pool, 0))
  new = pool_lib.update(pool, jnp.int32(1), loss, tx, draw, key, most=5, steps=jnp.int32(4))
  assert new["age"].tolist() == [0, 4]
  assert jnp.all(jnp.abs(new["params"][1]) < jnp.abs(pool["params"][1]))


@pytest.mark.slow
def test_a_step_of_sgd_is_the_gradient_through_synthetic_features_alone():
  overrides = ("optim.name=sgd", "optim.b1=0", "optim.lr=1", "optim.warmup=0", "method.pool=1")
  config, method, state, frozen = prepared(*overrides, "method.ridge=0.01")
  key = jax.random.key(3)
  new, metrics = method.step(state, frozen, {}, key)
  given, params = config.models.student, pool_lib.take(state["pool"], 0)["params"]
  rows = jax.random.randint(jax.random.split(key, 3)[1], (config.method.targets,), 0, 1438)
  real = np.asarray(convnet.apply(given, params, frozen["real"].x[rows])[1])
  y_t = np.eye(10)[frozen["real"].label[rows]] - 0.1

  def loss(student):
    """In the primal: weights of a linear layer on the features."""
    f, y = convnet.apply(given, params, student["images"])[1], student["labels"]
    ridge = 0.01 * jnp.sum(f**2) / len(f)
    weights = jnp.linalg.solve(f.T @ f + ridge * jnp.eye(f.shape[1]), f.T @ y)
    fit = jnp.mean(jnp.sum((real @ weights - y_t) ** 2, axis=1)) / 2
    top = jnp.sort(y, axis=1)
    return fit - jnp.mean(jnp.minimum(top[:, -1] - top[:, -2], 0.1))

  value, gradient = jax.value_and_grad(loss)(state["student"])
  np.testing.assert_allclose(metrics["loss"][0], value, rtol=1e-3)
  got = jax.tree.map(jnp.subtract, state["student"], new["student"])
  for name in ("images", "labels"):
    scale = np.abs(gradient[name]).max()
    np.testing.assert_allclose(got[name] / scale, gradient[name] / scale, atol=5e-3)


@pytest.mark.slow
def test_digits(tmp_path):
  results = train.run(config_lib.load(PATH), tmp_path)
  assert np.mean([results[f"distilled/accuracy@{i}"] for i in range(3)]) > 0.88  # random: 0.75
