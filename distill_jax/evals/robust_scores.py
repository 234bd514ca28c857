"""LRS and ARS: scores of a distilled set that discount what soft labels and augmentation give.

Accuracies are fractions, and so are the scores: 0 for the worst, 1 for the best there could be.
The definitions of DD-Ranking (the code's documentation; the code itself puts percentages in).

The eval trains networks by `config.protocol` on the set and on what it is compared with, so many
seeds of each, and takes means:

  accuracy_own, accuracy_hard   the set with its labels, and with classes alone
  accuracy_plain                with its labels, without augmentation
  accuracy_random, accuracy_random_plain   as many real images of each class, drawn for each seed,
                                with their classes for labels, with and without augmentation
  accuracy_real                 the whole training set
  lrs, ars                      from these

DD-Ranking gives random images the soft labels of a teacher where the set has such labels; these
have none, so a set that owes its accuracy to a teacher's labels scores more by LRS here.
"""

import functools
import math

import jax
import jax.numpy as jnp

from distill_jax import method as method_lib
from distill_jax.config import ConfigError
from distill_jax.distilled import protocol as protocol_lib
from distill_jax.distilled import synthetic
from distill_jax.evals import distilled


def make(config):
  """Raises ConfigError if the protocol has no augmentation to leave out."""
  if not config.protocol.augment:
    raise ConfigError("protocol.augment is empty: the augmentation-robust score needs some.")
  data, classes = method_lib.load("data", config.data.name), config.models.student.num_classes
  real, test = data.whole(config), data.held_out(config, "test")
  keys = jax.random.split(jax.random.key(config.seed + 1), config.protocol.seeds)
  manifest = distilled.manifest(config)
  changes = dict(own={}, hard=dict(labels="hard"), plain=dict(augment=()))
  configs = {name: config.copy_and_resolve_references() for name in changes}
  for name, change in changes.items():
    configs[name].protocol.update(change)

  @functools.partial(jax.jit, static_argnums=0)
  def of_set(name, student, real, key):
    x, labels, kind, lr = distilled.as_trained(configs[name], student, real)
    return trained(name, x, labels, key, kind=kind, lr=lr, manifest=manifest)

  @functools.partial(jax.jit, static_argnums=(0, 1))
  def of_random(name, per_class, real, key):
    of_rows, key = jax.random.split(key)
    rows = synthetic.random_rows(of_rows, real, per_class)
    return of_real(name, real.x[rows], real.label[rows], key)

  @functools.partial(jax.jit, static_argnums=0)
  def of_real(name, x, labels, key):
    return trained(name, x, labels, key)

  def trained(name, x, labels, key, **how):
    protocol = configs[name].protocol
    params = protocol_lib.train(protocol, config.models.student, x, labels, key, **how)
    return protocol_lib.accuracy(config.models.student, params, *test)

  def mean(accuracy):
    return float(sum(accuracy(key) for key in keys)) / len(keys)

  @functools.cache  # the set that is judged does not change them
  def compared_with(per_class):
    whole = jax.tree.map(jnp.asarray, real)
    return dict(
      accuracy_random=mean(lambda key: of_random("hard", per_class, whole, key)),
      accuracy_random_plain=mean(lambda key: of_random("plain", per_class, whole, key)),
      accuracy_real=mean(lambda key: of_real("hard", whole.x, whole.label, key)),
    )

  def evaluate(state, frozen):
    student = distilled.judged_student(state)
    count = len(student["rows"] if "rows" in student else student["images"])
    found = compared_with(count // classes)
    for name in configs:
      run = functools.partial(of_set, name, student, frozen.get("real"))
      found = found | {f"accuracy_{name}": mean(run)}
    lrs = label_robust(
      real_hard=found["accuracy_real"],
      synthetic_hard=found["accuracy_hard"],
      synthetic_any=found["accuracy_own"],
      random_any=found["accuracy_random"],
    )
    ars = augmentation_robust(
      synthetic_augmented=found["accuracy_own"],
      random_augmented=found["accuracy_random"],
      synthetic_plain=found["accuracy_plain"],
      random_plain=found["accuracy_random_plain"],
    )
    return found | dict(lrs=lrs, ars=ars)

  return evaluate


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
