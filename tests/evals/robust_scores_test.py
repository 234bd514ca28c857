"""LRS and ARS by hand, and the eval that measures what they are made of."""

import math

import jax
import jax.numpy as jnp
import pytest

from distill_jax import config as config_lib
from distill_jax.config import ConfigError
from distill_jax.evals import robust_scores


def labels(real_hard, synthetic_hard, synthetic_any, random_any):
  return robust_scores.label_robust(
    real_hard=real_hard,
    synthetic_hard=synthetic_hard,
    synthetic_any=synthetic_any,
    random_any=random_any,
  )


def test_best_and_worst_are_one_and_zero():
  assert labels(0.0, 1.0, 1.0, 0.0) == pytest.approx(1)
  assert labels(1.0, 0.0, 0.0, 1.0) == pytest.approx(0)


def test_no_better_than_random_and_as_good_as_real():
  """a = 0, so (1 - 1/e) / (e - 1/e) = 1 / (e + 1)."""
  assert labels(0.8, 0.8, 0.4, 0.4) == pytest.approx(1 / (math.e + 1))


def test_by_hand():
  a = 0.5 * (0.7 - 0.6) - 0.5 * (0.9 - 0.5)
  want = (math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1))
  assert labels(0.9, 0.5, 0.7, 0.6) == pytest.approx(want)
  given = dict(synthetic_augmented=0.7, random_augmented=0.5, synthetic_plain=0.6, random_plain=0.7)
  a = 0.25 * 0.2 + 0.75 * -0.1
  want = (math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1))
  assert robust_scores.augmentation_robust(**given, weight=0.25) == pytest.approx(want)


def test_percentages_are_refused():
  with pytest.raises(ValueError, match="fractions from 0 to 1, got 84"):
    labels(84, 0.5, 0.5, 0.5)


def test_the_eval_trains_on_what_the_scores_compare():
  overrides = ["label_kind=logits", "protocol.epochs=20", "eval_samples=359"]
  config = config_lib.load("experiments/dataset/dm.py:smoke,robust,others", overrides)
  with config.unlocked():
    config.models.student = config.others.perceptron
  images = jax.random.normal(jax.random.key(0), (10, 8, 8, 1))
  evaluate = robust_scores.make(config)
  found = evaluate(dict(student=dict(images=images)), {})
  assert found["accuracy_own"] == found["accuracy_hard"] != found["accuracy_plain"]
  names = dict(real_hard="real", synthetic_hard="hard", synthetic_any="own", random_any="random")
  want = labels(**{argument: found[f"accuracy_{name}"] for argument, name in names.items()})
  assert found["lrs"] == pytest.approx(want) and 0 < found["ars"] < 1
  soft = evaluate(dict(student=dict(images=images, labels=jnp.zeros((10, 10)))), {})
  assert soft["accuracy_hard"] == found["accuracy_hard"] != soft["accuracy_own"]
  assert soft["accuracy_real"] == found["accuracy_real"]


def test_a_protocol_without_augmentation_is_refused():
  config = config_lib.load("experiments/dataset/dm.py:smoke,robust", ["protocol.augment=()"])
  with pytest.raises(ConfigError, match=r"protocol.augment is empty"):
    robust_scores.make(config)
