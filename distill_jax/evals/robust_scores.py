"""LRS and ARS: scores of a distilled set that discount what soft labels and augmentation give.

Accuracies are fractions, and so are the scores: 0 for the worst, 1 for the best there could be.
The definitions of DD-Ranking (the code's documentation; the code itself puts percentages in).
"""

import math


def label_robust(
  *,
  real_hard: float,
  synthetic_hard: float,
  synthetic_any: float,
  random_any: float,
  weight: float = 0.5,
) -> float:
  """LRS = (e^a - e^-1) / (e - e^-1), a = w IOR - (1 - w) HLR: with `weight` w,

  hard label recovery HLR = real_hard - synthetic_hard, the smaller the better, and
  improvement over random IOR = synthetic_any - random_any.

  Args:
    real_hard: accuracy of training on the whole real set with hard labels.
    synthetic_hard: on the distilled set with hard labels.
    synthetic_any: on the distilled set with the labels it has.
    random_any: on as many random real images, with labels of the same kind.
    weight: w.

  Returns:
    In [0, 1].

  Raises:
    ValueError: an accuracy that is no fraction.
  """
  _check(real_hard, synthetic_hard, synthetic_any, random_any)
  return _score(weight * (synthetic_any - random_any) - (1 - weight) * (real_hard - synthetic_hard))


def augmentation_robust(
  *,
  synthetic_augmented: float,
  random_augmented: float,
  synthetic_plain: float,
  random_plain: float,
  weight: float = 0.5,
) -> float:
  """ARS = (e^a - e^-1) / (e - e^-1), a = g IOR of training with augmentation + (1 - g) IOR without,
  IOR = accuracy of the distilled set - that of as many random real images, `weight` g.

  Returns:
    In [0, 1].

  Raises:
    ValueError: an accuracy that is no fraction.
  """
  _check(synthetic_augmented, random_augmented, synthetic_plain, random_plain)
  augmented, plain = synthetic_augmented - random_augmented, synthetic_plain - random_plain
  return _score(weight * augmented + (1 - weight) * plain)


def _score(a: float) -> float:
  return (math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1))


def _check(*accuracies: float) -> None:
  for x in accuracies:
    if not 0 <= x <= 1:
      raise ValueError(f"accuracies are fractions from 0 to 1, got {x}")
