"""KIP against finite differences of its loss in float64, label solve, and digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax import train
from distill_jax.data import image_set

PATH = "experiments/dataset/kip.py"


def prepared(words="", *overrides):
  config = config_lib.load(f"{PATH}:smoke{words}", overrides)
  method = method_lib.load("methods", config.method.name).make(config)
  return config, method, *method.init(jax.random.key(0), dict(real=image_set.whole(config)))


def gaussian_loss(images, x, label, gamma, ridge):
  """KIP's loss with hard labels, in NumPy, float64."""
  s, t = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (images, x))
  k = lambda a, b: np.exp(-gamma * ((a[:, None] - b[None]) ** 2).sum(-1))  # noqa: E731
  y_s, y_t = np.eye(10) - 0.1, np.eye(10)[label] - 0.1
  k_ss = k(s, s)
  weights = np.linalg.solve(k_ss + ridge * np.trace(k_ss) / len(s) * np.eye(len(s)), y_s)
  return 0.5 * np.mean((k(t, s) @ weights - y_t) ** 2)


def test_a_step_of_sgd_is_the_gradient():
  """The real images of the step are those that its key draws."""
  overrides = ("optim.name=sgd", "optim.b1=0", "optim.lr=1", "optim.warmup=0", "method.ridge=0.01")
  config, method, state, frozen = prepared(",kernel=rbf", *overrides)
  key = jax.random.key(5)
  new, metrics = method.step(state, frozen, {}, key)
  rows = jax.random.randint(key, (config.method.targets,), 0, len(frozen["real"].x))
  x, label = frozen["real"].x[rows], frozen["real"].label[rows]
  images = np.asarray(state["student"]["images"], np.float64)
  loss = lambda images: gaussian_loss(images, x, label, config.method.gamma, 0.01)  # noqa: E731
  np.testing.assert_allclose(metrics["loss"][0], loss(images), rtol=1e-5)
  direction = np.random.default_rng(0).normal(size=images.shape)
  slope = (loss(images + 1e-5 * direction) - loss(images - 1e-5 * direction)) / 2e-5
  step = state["student"]["images"] - new["student"]["images"]
  np.testing.assert_allclose(np.sum(direction * step), slope, rtol=2e-3)


def test_label_solve_is_least_squares_and_leaves_the_images():
  _, method, state, frozen = prepared(",variant=label_solve", "method.ridge=0.001")
  key = jax.random.key(1)
  new, first = method.step(state, frozen, {}, key)
  np.testing.assert_array_equal(new["student"]["images"], state["student"]["images"])
  again, second = method.step(new, frozen, {}, key)  # the same targets: the loss is its least
  np.testing.assert_allclose(again["student"]["labels"], new["student"]["labels"])
  for scale in (0.99, 1.01):
    labels = scale * new["student"]["labels"]
    _, metrics = method.step(
      dict(new, student=dict(new["student"], labels=labels)), frozen, {}, key
    )
    np.testing.assert_allclose(metrics["loss"][0], second["loss"][0])
  assert second["loss"][0] <= first["loss"][0]


@pytest.mark.parametrize("kernel", ["fc", "conv", "rbf"])
def test_labels_are_learned_where_asked(kernel):
  _, method, state, frozen = prepared(f",kernel={kernel},labels=learned")
  new, metrics = jax.jit(method.step)(state, frozen, {}, jax.random.key(0))
  assert jnp.isfinite(metrics["loss"][0]) and metrics["skipped"][0] == 0
  for name in ("images", "labels"):
    assert jnp.any(new["student"][name] != state["student"][name])
  assert "labels" not in prepared()[2]["student"]


def test_wrong_words_are_told():
  with pytest.raises(config_lib.ConfigError, match="labels='soft'"):
    prepared(",labels=soft")
  with pytest.raises(ValueError, match="no 'linear': fc, conv, rbf"):
    prepared(",kernel=linear")


@pytest.mark.slow
def test_digits(tmp_path):
  results = train.run(config_lib.load(PATH), tmp_path)
  assert results["kernel/accuracy"] > 0.9  # random images: 0.63
  assert np.mean([results[f"distilled/accuracy@{i}"] for i in range(3)]) > 0.85  # 0.75
