"""Trajectory matching: one gradient in three memories, TESLA's by hand, and what is drawn."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax import train
from distill_jax.config import ConfigError
from distill_jax.distilled import unroll as unroll_lib
from distill_jax.distilled.real import Real
from distill_jax.losses import matching
from distill_jax.methods.dataset import mtt
from distill_jax.models import pretrained

PATH = "experiments/dataset/mtt.py"


def draw(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def trees():
  return [{"a": draw(s, 3, 2), "b": draw(s + 1, 3)} for s in (0, 10)]


def gradient(params, data, step):
  """Of a loss that is curved in parameters and in images."""
  x = data["images"][step["row"]]
  return jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w["a"]) ** 2) + jnp.sum(w["b"] ** 2 * x**3))(
    params
  )


def problem(steps):
  data = dict(images=draw(3, 4, 3))
  return data, jnp.float32(0.1), dict(row=jnp.arange(steps) % 4)


def slopes(unroll, steps):
  data, lr, given = problem(steps)

  def loss(data, lr):
    start, target = trees()
    return unroll_lib.match(gradient, data, lr, given, start, [target], unroll=unroll)

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(data, lr)


def close(a, b, **tolerance):
  tolerance = dict(rtol=1e-5, atol=1e-6) | tolerance
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("steps", [1, 3, 9, 11])  # blocks of one, with a rest, whole, with a rest
def test_full_remat_and_sqrt_have_one_gradient(steps):
  data, lr, given = problem(steps)
  start, target = trees()

  def loop(data, lr):
    params = start
    for row in given["row"]:
      g = gradient(params, data, dict(row=row))
      params = jax.tree.map(lambda w, g: w - lr * g, params, g)
    return matching.trajectory_distance(params, start, target)

  want = jax.value_and_grad(loop, argnums=(0, 1))(data, lr)
  for unroll in ("full", "remat", "sqrt"):
    close(slopes(unroll, steps), want)


def test_tesla_is_two_passes():
  data, lr, given = problem(6)
  start, target = trees()
  params, total, points = start, jax.tree.map(jnp.zeros_like, start), []
  for row in given["row"]:
    points.append(params)
    g = gradient(params, data, dict(row=row))
    total = jax.tree.map(jnp.add, total, g)
    params = jax.tree.map(lambda w, g: w - lr * g, params, g)
  gap = jax.tree.map(lambda w, s: w - s, params, target)
  distance = matching.squared_distance(start, target)
  images = jnp.zeros((4, 3))
  for row, at in zip(given["row"], points, strict=True):

    def along(images, row=row, at=at):
      return matching.dot(gap, gradient(at, dict(images=images), dict(row=row)))

    images = images - 2 * lr / distance * jax.grad(along)(data["images"])
  value, (by_data, by_lr) = slopes("tesla", 6)
  close(value, slopes("full", 6)[0])
  close(by_data["images"], images)
  close(by_lr, -2 * matching.dot(total, gap) / distance)
  exact = slopes("full", 6)[1][0]["images"]
  assert np.max(np.abs(images - exact)) > 1e-3 * np.max(np.abs(exact))


def test_tesla_of_one_step_is_exact():
  close(slopes("tesla", 1), slopes("full", 1))


@pytest.mark.parametrize("unroll", ["full", "remat", "sqrt"])
def test_momentum_and_targets_on_the_way(unroll):
  """7 steps and 3 targets: after 2, 4 and all."""
  data, lr, given = problem(7)
  start, target = trees()
  middle = jax.tree.map(lambda a, b: (a + b) / 2, start, target)
  targets = [middle, start, target]
  targets[1] = jax.tree.map(lambda a, b: (a + 3 * b) / 4, start, target)
  how = dict(unroll=unroll, momentum=0.9)

  def loop(data, lr):
    params, velocity, total = start, jax.tree.map(jnp.zeros_like, start), 0.0
    for k, row in enumerate(given["row"]):
      g = gradient(params, data, dict(row=row))
      velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, g)
      params = jax.tree.map(lambda w, v: w - lr * v, params, velocity)
      if k + 1 in (2, 4, 7):
        total += matching.trajectory_distance(params, start, targets[(2, 4, 7).index(k + 1)])
    return total

  def loss(data, lr):
    return unroll_lib.match(gradient, data, lr, given, start, targets, **how)

  close(*(jax.value_and_grad(f, argnums=(0, 1))(data, lr) for f in (loss, loop)), rtol=1e-4)


def test_tesla_takes_one_target_and_no_momentum():
  data, lr, given = problem(2)
  for targets, momentum in ((trees(), 0.0), (trees()[:1], 0.9)):
    with pytest.raises(ValueError, match="neither momentum"):
      how = dict(unroll="tesla", momentum=momentum)
      unroll_lib.match(gradient, data, lr, given, trees()[0], targets, **how)


def test_weights_are_perturbed_where_they_convolve():
  params = dict(kernel=jnp.full((3, 3, 2, 2), 2.0), bias=jnp.ones(4))
  moved = mtt.perturbed(jax.random.key(0), params, 0.5)
  close(moved["bias"], params["bias"])
  close(jnp.linalg.norm(moved["kernel"] - params["kernel"]), 1.0)  # 0.5 times the weight


def test_the_inner_loss_is_balanced_between_early_and_late_epochs():
  factors = mtt.balance(jnp.array([0, 9, 10, 17, 27]), 20)
  close(factors, np.log([5, 5, 8, 15, 25]) / np.log([18, 9, 5, 5, 5]), rtol=1e-5)


def test_representative_images_are_near_the_means_of_clusters():
  logits = jnp.array([[0.0], [0.2], [0.1], [5.0], [5.3], [5.1], [1.0]])
  label = jnp.array([0, 0, 0, 0, 0, 0, 1])
  real = Real(jnp.zeros((7, 2, 2, 1)), label, jnp.array([0, 6]), jnp.array([6, 1]))
  rows = mtt.representative(jax.random.key(0), logits, real, 1)
  assert rows[0] in (1, 3) and rows[1] == 6  # the mean is 2.6: 0.2 and 5.0 are as near as any
  two = mtt.representative(
    jax.random.key(0), logits[:6], Real(*(real[0][:6], label[:6], label[:1], label[:1])), 2
  )
  assert sorted(np.asarray(two).tolist()) == [2, 5]


def test_batches_go_through_the_set():
  steps = mtt.batches(jax.random.key(0), images=10, size=4, steps=5)
  assert steps["rows"].shape == (5, 4) and steps["key"].shape == (5,)
  for two in (steps["rows"][:2], steps["rows"][2:4]):
    assert len(np.unique(two)) == 8
  whole = mtt.batches(jax.random.key(0), images=3, size=4, steps=2)
  close(np.sort(whole["rows"]), np.tile(np.arange(3), (2, 1)))


def test_start_epochs_grow():
  given = types.SimpleNamespace(max_start=7, first_max_start=2, growth=10)
  steps = jnp.array([0, 1, 2, 5, 10, 1000])
  bounds = jax.vmap(functools.partial(mtt.last_start, given))(steps)
  np.testing.assert_array_equal(bounds, [2, 2, 3, 4, 7, 7])


def test_known_images_come_first_and_labels_are_of_the_right():
  label = jnp.array([0, 0, 1, 1])
  logits = jnp.array(
    [
      [[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [5.0, 0.0]],
      [[4.0, 0.0], [0.0, 3.0], [0.0, 7.0], [9.0, 0.0]],
    ]
  )  # image 0: both are right; 1: none; 2: the second; 3: none
  real = Real(jnp.zeros((4, 2, 2, 1)), label, jnp.array([0, 2]), jnp.array([2, 2]))
  for seed in range(3):
    rows, labels = mtt.known(jax.random.key(seed), logits, real, 1)
    np.testing.assert_array_equal(rows, [0, 2])
    close(labels, np.array([[3.0, 0.0], [0.0, 7.0]]))
  rows, labels = mtt.known(jax.random.key(0), logits, real, 2)
  np.testing.assert_array_equal(rows, [0, 1, 2, 3])
  close(labels[1], np.array([0.0, 2.0]))  # of all, for none is right


def made(*overrides, arg="smoke"):
  config = config_lib.load(f"{PATH}:{arg}", overrides)
  real = method_lib.load("data", "image_set").whole(config)
  return config, mtt.make(config), dict(real=jax.tree.map(jnp.asarray, real))


@pytest.mark.slow
def test_a_step_of_the_learned_rate_is_as_long_as_the_authors():
  """tesla, syn_steps 1, no augmentation: the derivative in the rate is known."""
  few = ("method.syn_steps=1", "method.unroll=tesla", "augment=()", "method.experts.count=1")
  config, method, given = made(*few, "method.lr=0.05", "method.lr_lr=1e-4")
  state, frozen = jax.jit(method.init)(jax.random.key(0), given)
  new, metrics = jax.jit(method.step)(state, frozen, {}, jax.random.key(1))
  start, target = (jax.tree.map(lambda x, e=e: x[e, 0], frozen["trajectory"]) for e in (0, 1))
  label = jnp.repeat(jnp.arange(10), config.per_class)
  model = method_lib.load("models", "convnet")

  def nats(params):
    logits = model.apply(config.models.student, params, state["student"]["images"])[0]
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(label)), label])

  g = jax.grad(nats)(start)
  end = jax.tree.map(lambda w, g: w - 0.05 * g, start, g)
  gap = jax.tree.map(jnp.subtract, end, target)
  slope = -2 * matching.dot(g, gap) / matching.squared_distance(start, target)
  close(metrics["loss"][0], matching.trajectory_distance(end, start, target), rtol=1e-4)
  moved = new["student"]["log_lr"] - state["student"]["log_lr"]
  close(0.05 * moved, -1e-4 * slope, rtol=1e-3, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["datm", "ftd"])
def test_a_step_too_far_away_changes_nothing(variant):
  _, method, given = made("method.threshold=1e-6", "augment=()", arg=f"smoke,variant={variant}")
  state, frozen = jax.jit(method.init)(jax.random.key(0), given)
  assert ("labels" in state["student"]) == (variant == "datm")
  new, metrics = jax.jit(method.step)(state, frozen, {}, jax.random.key(1))
  assert metrics["loss"][0] > 1e-6
  jax.tree.map(np.testing.assert_array_equal, new["student"], state["student"])


def test_experts_of_files(tmp_path):
  config, method, given = made()
  _, frozen = jax.jit(method.init)(jax.random.key(0), given)
  pretrained.save(tmp_path, jax.device_get(frozen["trajectory"]), config.models.student, "float32")
  given["experts"] = pretrained.load(str(tmp_path))
  _, again = jax.jit(method.init)(jax.random.key(1), given)
  jax.tree.map(np.testing.assert_array_equal, again, frozen)
  _, method, _ = made("method.max_start=3")
  with pytest.raises(ConfigError, match="is 4, more than the experts' 2"):
    jax.eval_shape(method.init, jax.random.key(0), given)


def test_an_unknown_unroll():
  with pytest.raises(ConfigError, match="half"):
    made("method.unroll=half")


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["mtt", "tesla", "ftd", "datm", "ast"])
def test_digits_beat_random(tmp_path, variant):
  results = train.run(config_lib.load(f"{PATH}:variant={variant}", ()), tmp_path)
  accuracy = [v for k, v in results.items() if k.startswith("distilled/accuracy@")]
  assert np.mean(accuracy) > 0.85  # random: 0.75
