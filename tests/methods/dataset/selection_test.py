"""Selection: what each rule picks of a small set, and the functions that it masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax.config import ConfigError
from distill_jax.data import coresets
from distill_jax.distilled.real import Real
from distill_jax.methods.dataset import selection

COUNT = np.array([12, 9, 15])
WRONG = (5, 14, 30)  # rows with an image of the next class


def config(**changes):
  given = config_lib.load("experiments/dataset/selection.py:smoke", ("per_class=2",))
  given = given.copy_and_resolve_references().unlock()
  given.models.student.update(num_classes=3, depth=1)
  given.method.update(epochs=10, batch_size=9, network_lr=0.05, **changes)
  return given


def real():
  """Noisy stripes of three phases; one image of each class has the label of another."""
  label = np.repeat(np.arange(3), COUNT)
  shown = label.copy()
  shown[list(WRONG)] = (shown[list(WRONG)] + 1) % 3
  phase = (np.arange(8)[None] + shown[:, None]) % 3 == 0
  x = np.broadcast_to(2.0 * phase[:, None, :, None], (len(label), 8, 8, 1))
  x = x + 0.1 * np.random.default_rng(0).normal(size=x.shape)
  first = np.cumsum(COUNT) - COUNT
  return Real(*map(jnp.asarray, (x.astype("f4"), label, first, COUNT)))


def rows(**changes):
  init = jax.jit(selection.make(config(**changes)).init)
  state, frozen = init(jax.random.key(0), dict(real=real()))
  assert set(state["student"]) == {"rows"} and set(frozen) == {"real"}
  return np.asarray(state["student"]["rows"])


@pytest.mark.parametrize("how", ["random", "herding", "k_center", "k_means"])
def test_different_rows_of_the_right_class(how):
  chosen = rows(how=how)
  assert len(set(chosen)) == 6
  np.testing.assert_array_equal(np.repeat(np.arange(3), COUNT)[chosen], [0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize("how", ["el2n", "grand", "forgetting"])
def test_wrong_labels_are_the_hardest(how):
  hard, easy = (rows(how=how, keep=keep) for keep in ("hard", "easy"))
  assert set(WRONG) <= set(hard)
  assert not set(WRONG) & set(easy)


def test_the_middle_of_a_class_is_no_wrong_image():
  assert not set(WRONG) & set(rows(how="herding", features="pixels"))


def test_the_wrong_image_is_the_farthest_and_a_cluster_of_its_own():
  assert set(rows(how="k_center", features="pixels")[1::2]) == set(WRONG)
  assert set(WRONG) <= set(rows(how="k_means", features="pixels"))


def test_a_step_changes_nothing_but_its_number():
  method = selection.make(config(how="random"))
  state, frozen = method.init(jax.random.key(0), dict(real=real()))
  new, _ = method.step(state, frozen, {}, jax.random.key(1))
  assert new["step"] == 1
  np.testing.assert_array_equal(new["student"]["rows"], state["student"]["rows"])


@pytest.mark.parametrize(
  "changes, says",
  [
    (dict(how="hardest"), r"method\.how: no 'hardest'"),
    (dict(keep="all"), r"method\.keep: no 'all'"),
    (dict(features="pixel"), r"method\.features: no 'pixel'\. Did you mean 'pixels'"),
  ],
)
def test_refusals(changes, says):
  with pytest.raises(ConfigError, match=says):
    selection.make(config(**changes))


@pytest.mark.parametrize("name", ["herding", "k_center"])
def test_a_mask_is_the_part_itself(name):
  x = np.asarray(jax.random.normal(jax.random.key(0), (20, 3)))
  inside = np.isin(np.arange(20), [1, 4, 5, 9, 12, 18])
  part = np.flatnonzero(inside)
  if name == "herding":
    got = coresets.herding(x, 6, where=inside)
    want = part[coresets.herding(x[inside], 6)]
  else:
    got = coresets.k_center(x, 5, start=[4], where=inside)
    want = part[coresets.k_center(x[inside], 5, start=[1])]
  np.testing.assert_array_equal(got, want)


def test_k_means_takes_the_nearest_to_the_mean_of_each_cluster():
  middle = np.array([[0.0, 0], [50, 0], [0, 50]])
  offsets = np.array([[1.0, 0], [-1, 0], [0, 2], [0, -2.5], [0.1, 0]])
  x = (middle[:, None] + offsets).reshape(-1, 2)
  far = np.array([[1000.0, 1000.0]])
  x, inside = np.concatenate([x, far]), np.arange(16) < 15
  for seed in range(5):
    chosen = coresets.k_means(x, 3, key=jax.random.key(seed), where=inside)
    assert sorted(np.asarray(chosen)) == [4, 9, 14]


def test_k_means_of_equal_examples_and_of_all():
  chosen = coresets.k_means(np.ones((4, 2)), 3, key=jax.random.key(0))
  assert len(set(np.asarray(chosen))) == 3
  chosen = coresets.k_means(np.eye(3), 3, key=jax.random.key(0))
  assert sorted(np.asarray(chosen)) == [0, 1, 2]
