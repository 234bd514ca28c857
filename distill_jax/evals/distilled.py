"""How good a distilled set is: networks trained on it by `config.protocol`, from as many random
starts as it has seeds, on images that distillation never saw.

  accuracy             on test images, one value for each seed: accuracy@SEED
  accuracy_NAME        the same of another architecture, for each of `config.others`
  validation_accuracy  mean, on held-out training images (`data.validation`): the only one that may
                       choose a checkpoint

The set's first moving average is judged, where it has one.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import method as method_lib
from distill_jax.config import ConfigError
from distill_jax.data import soft_labels
from distill_jax.distilled import protocol as protocol_lib
from distill_jax.distilled import synthetic


def make(config):
  if config.keep_best and "validation" not in config.best_metric:
    raise ConfigError(
      f"best_metric {config.best_metric!r}: a distilled set is chosen by validation images "
      "(data.validation, distilled/validation_accuracy) or not at all."
    )
  data = method_lib.load("data", config.data.name)
  splits = {"": data.held_out(config, "test")}
  if config.data.validation:
    splits["validation_"] = data.held_out(config, "validation")
  networks = {"": config.models.student}
  networks.update({f"_{name}": given for name, given in config.others.items()})

  of_views = manifest(config)

  @functools.partial(jax.jit, static_argnums=0)
  def judged(name, student, real, key):
    x, labels, kind, lr = as_trained(config, student, real)
    given = networks[name]
    how = dict(kind=kind, lr=lr, manifest=of_views)
    params = protocol_lib.train(config.protocol, given, x, labels, key, **how)
    return {split: protocol_lib.accuracy(given, params, *of) for split, of in splits.items()}

  def evaluate(state, frozen):
    results = {}
    student = judged_student(state)
    keys = jax.random.split(jax.random.key(config.seed + 1), config.protocol.seeds)
    for name in networks:
      each = [judged(name, student, frozen.get("real"), key) for key in keys]
      for i, values in enumerate(each):
        results[f"accuracy{name}@{i}"] = float(values[""])
      for split in splits:
        if split:
          results[f"{split}accuracy{name}"] = float(np.mean([v[split] for v in each]))
    return results

  return evaluate


def judged_student(state):
  """The set's first moving average, or the set."""
  return next(iter(state.get("ema", {}).values()), state["student"])


def manifest(config):
  """Of the folder `method.views`; None without one."""
  folder = config.method.get("views", "")
  return soft_labels.read_manifest(pathlib.Path(folder).expanduser()) if folder else None


def as_trained(config, student, real=None):
  """Images, labels, their kind, and the learning rate, as `protocol.train` takes them.

  A student that has `rows` instead of images is those images of `real` (distilled/real.py). With
  `config.parts` of 2 every image is 4 small ones, each with the image's label.
  """
  protocol, classes = config.protocol, config.models.student.num_classes
  if "rows" in student:
    images, labels = real.x[student["rows"]], real.label[student["rows"]]
  else:
    images = student["images"]
    labels = synthetic.hard_labels(classes, len(images) // classes)
  kind = "hard"
  if protocol.labels != "hard" and "labels" in student:
    labels, kind = student["labels"], config.label_kind
    if "views" in student:
      labels, kind = student["views"], "views"
  if config.parts > 1:
    images = synthetic.parted(images, config.parts)
    labels = jnp.repeat(labels, config.parts**2, axis=0)
  lr = jnp.exp(student["log_lr"]) if protocol.learned_lr and "log_lr" in student else None
  return images, labels, kind, lr
