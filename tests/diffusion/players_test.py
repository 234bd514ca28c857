"""Who moves when, and the small parts that methods share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from distill_jax import config as config_lib
from distill_jax import optim
from distill_jax.diffusion import network as network_lib
from distill_jax.diffusion import players
from distill_jax.diffusion.network import Network

NETWORK = Network(lambda key: {}, lambda *a: (a[1], a[1]), (2,), 0.5, 3)
FREE = NETWORK._replace(num_classes=0)


@pytest.mark.parametrize(
  "cadence, ratio, students, others",
  [
    ("every", 1, "111111", "111111"),
    ("every", 3, "100100", "111111"),  # DMD2: 1 : ratio, the student before them
    ("either", 3, "100100", "011011"),  # FastGen: 1 : ratio - 1
    ("either", 1, "111111", "111111"),
  ],
)
def test_cadences(cadence, ratio, students, others):
  config = ConfigDict(dict(method=dict(cadence=cadence, ratio=ratio)))

  def move(name, other):
    def step(state):
      moved = dict(state, **{name: state[name] + 1, f"{name}_saw": state[other]})
      return moved, {f"{name}_loss": (jnp.float32(7), jnp.float32(1))}

    return step

  @jax.jit
  def step(state):
    return players.alternate(config, state, move("student", "fake"), move("fake", "student"))

  state = dict.fromkeys(("step", "student", "fake", "student_saw", "fake_saw"), jnp.int32(0))
  for t in range(6):
    before = state
    state, metrics = step(state)
    moved = [int(state[name] - before[name]) for name in ("student", "fake")]
    assert moved == [int(students[t]), int(others[t])], t
    assert int(state["step"]) == t + 1
    for name, count in zip(("student", "fake"), moved, strict=True):  # who rests counts nothing
      assert tuple(map(float, metrics[f"{name}_loss"])) == (7 * count, count)
    if moved[1]:
      assert int(state["fake_saw"]) == int(state["student"])  # the student's move came first
  assert step._cache_size() == 1


def test_an_unknown_cadence_is_refused():
  config = ConfigDict(dict(method=dict(cadence="both", ratio=2)))
  with pytest.raises(ValueError, match="cadence is every or either, not 'both'"):
    players.alternate(config, dict(step=jnp.int32(0)), None, None)


def test_labels():
  batch, key = dict(label=jnp.arange(3)), jax.random.key(0)
  assert players.label_of(FREE, batch) == {} == players.random_labels(FREE, key, 4)
  condition = players.label_of(NETWORK, batch)
  np.testing.assert_array_equal(condition["label"], batch["label"])
  many = players.random_labels(NETWORK, key, 3000)["label"]
  np.testing.assert_allclose(np.bincount(many) / 3000, np.full(3, 1 / 3), atol=0.04)


def test_dropped_labels_are_the_null_label():
  condition, key = {"label": jnp.zeros(2000, jnp.int32)}, jax.random.key(0)
  assert players.drop(NETWORK, condition, key, 0.0) is condition
  assert players.drop(FREE, {}, key, 0.5) == {}
  label = players.drop(NETWORK, condition, key, 0.3)["label"]
  assert set(np.asarray(label).tolist()) == {0, 3} and abs(np.mean(label == 3) - 0.3) < 0.04
  np.testing.assert_array_equal(players.drop(NETWORK, condition, key, 1.0)["label"], 3)


def test_totals_and_means():
  x = jnp.arange(12.0).reshape(2, 3, 2)
  np.testing.assert_allclose(players.mean(x), x.reshape(2, 6).mean(1))
  assert tuple(map(float, players.total(players.mean(x)))) == (11.0, 2.0)


def test_noised_is_x_plus_sigma_eps():
  config = config_lib.load("experiments/diffusion/denoising.py:smoke")
  x = jnp.full((2000, 2), 5.0)
  x_t, sigma = players.noised(config, jax.random.key(0), x)
  eps = (x_t - x) / sigma[:, None]
  assert sigma.shape == (2000,)
  np.testing.assert_allclose([eps.mean(), eps.std()], [0, 1], atol=0.05)
  assert abs(float(jnp.corrcoef(jnp.log(sigma), jnp.abs(eps).sum(1))[0, 1])) < 0.08


def test_start_and_move():
  config = config_lib.load("experiments/diffusion/denoising.py:smoke")
  tx, fake_tx = optim.make(config.optim, 2), optax.sgd(0.5)
  fake = (dict(w=jnp.ones(2)), fake_tx)
  state, frozen = players.start(config, jax.random.key(0), {}, tx, fake=fake)
  assert set(state) == {"step", "student", "opt", "ema", "fake", "fake_opt"}
  assert frozen == dict(teacher={})  # the exact denoiser has no parameters
  assert players.start(config, jax.random.key(0), {}, tx, teacher=False)[1] == {}

  def loss(params, batch, key):
    value = (params["w"] * batch).sum()
    return (value, jnp.float32(2)), {"other/rate": players.total(jnp.ones(1))}

  moved, metrics = players.move(
    config, fake_tx, loss, state, jnp.array([2.0, 4.0]), jax.random.key(1), "fake"
  )
  np.testing.assert_allclose(moved["fake"]["w"], [0.5, 0.0])  # 1 - 0.5 * (2, 4) / 2
  assert set(metrics) == {"fake_loss", "fake_grad_norm", "fake_skipped", "other/rate"}
  jax.tree.map(np.testing.assert_array_equal, moved["student"], state["student"])


def test_the_average_follows_the_student():
  config = config_lib.load("experiments/diffusion/denoising.py:smoke", ("ema=(('constant',0.5),)",))
  tx = optax.sgd(1.0)
  state = dict(step=jnp.int32(5), student=jnp.float32(1), opt=tx.init(jnp.float32(1)))
  state["ema"] = optim.ema_init(config.ema, state["student"])

  def loss(params, batch, key):
    return (params * batch, jnp.float32(1)), {}

  state, metrics = players.move(config, tx, loss, state, jnp.float32(2), jax.random.key(0))
  assert float(state["student"]) == -1 and set(metrics) == {"loss", "grad_norm", "skipped"}
  assert [float(x) for x in state["ema"].values()] == [0.0]


def test_a_fake_score_begins_as_the_teacher():
  config = config_lib.load("experiments/diffusion/denoising.py:smoke")
  config.models.teacher.name = "mlp"
  teacher = jax.jit(network_lib.make(config, "teacher").init)(jax.random.key(3))
  tx = optim.make(config.optim, 2)
  state, frozen = players.start(
    config, jax.random.key(0), dict(teacher=teacher), tx, fake=(None, tx)
  )
  for one in (state["student"], state["fake"], frozen["teacher"]):
    jax.tree.map(np.testing.assert_array_equal, one, teacher)
