"""LRS and ARS by hand."""

import math

import pytest

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
