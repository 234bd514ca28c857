"""Accuracy, cross-entropy and calibration of a classifier whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax.data import images
from distill_jax.evals import classification
from distill_jax.methods.classifier import supervised


def test_ece_by_hand():
  # confidences 0.95, 0.95 (one right), 0.6 (right), 1.0 (right): bins of a tenth
  p = jnp.array([[0.95, 0.05], [0.05, 0.95], [0.4, 0.6], [1.0, 0.0]])
  label = jnp.array([0, 0, 1, 0])
  ece = classification.expected_calibration_error(p, label, bins=10)
  # 0.6 is the end of (0.5, 0.6]; the three others share (0.9, 1]
  assert float(ece) == pytest.approx((abs(2 - 2.9) + abs(1 - 0.6)) / 4, abs=1e-6)


def test_a_calibrated_classifier_has_none_and_a_wrong_sure_one_has_1():
  p = jnp.tile(jnp.array([[0.75, 0.25]]), (4, 1))
  assert float(classification.expected_calibration_error(p, jnp.array([0, 0, 0, 1]))) < 1e-6
  sure = jnp.array([[1.0, 0.0]])
  assert float(classification.expected_calibration_error(sure, jnp.array([1]))) == 1


def test_of_a_network_that_always_says_the_same_and_of_several_seeds():
  config = config_lib.load("experiments/classifier/supervised.py:smoke", ("ema=()",))
  state, _ = supervised.make(config).init(jax.random.key(0), {})
  state["student"]["head"] = dict(
    kernel=jnp.zeros_like(state["student"]["head"]["kernel"]), bias=jnp.zeros(10).at[3].set(2.0)
  )
  share = np.mean(images.load("digits", "test").label[:64] == 3)
  confidence = np.e**2 / (np.e**2 + 9)
  want = dict(
    accuracy=share, cross_entropy=np.log(np.e**2 + 9) - 2 * share, ece=abs(share - confidence)
  )
  values = classification.make(config)(state, {})
  assert values == pytest.approx(want, rel=1e-5)
  config.seeds = 2
  both = jax.tree.map(lambda x: jnp.stack([x, x]), state)
  assert classification.make(config)(both, {}) == pytest.approx(
    {f"{k}@{i}": v for i in range(2) for k, v in want.items()}, rel=1e-5
  )
