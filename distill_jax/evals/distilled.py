"""How good a distilled set is: networks trained on it by `config.protocol`, from as many random
starts as it has seeds, on images that distillation never saw.

  accuracy             on test images, one value for each seed: accuracy@SEED
  accuracy_NAME        the same of another architecture, for each of `config.others`
  validation_accuracy  mean, on held-out training images (`data.validation`): the only one that may
                       choose a checkpoint
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import method as method_lib
from distill_jax.config import ConfigError
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

  @functools.partial(jax.jit, static_argnums=0)
  def judged(name, student, key):
    x, labels, kind, lr = as_trained(config, student)
    given = networks[name]
    params = protocol_lib.train(config.protocol, given, x, labels, key, kind=kind, lr=lr)
    return {split: protocol_lib.accuracy(given, params, *of) for split, of in splits.items()}

  def evaluate(state, frozen):
    results = {}
    keys = jax.random.split(jax.random.key(config.seed + 1), config.protocol.seeds)
    for name in networks:
      each = [judged(name, state["student"], key) for key in keys]
      for i, values in enumerate(each):
        results[f"accuracy{name}@{i}"] = float(values[""])
      for split in splits:
        if split:
          results[f"{split}accuracy{name}"] = float(np.mean([v[split] for v in each]))
    return results

  return evaluate


def as_trained(config, student):
  """Images, labels, their kind, and the learning rate, as `protocol.train` takes them."""
  protocol, images = config.protocol, student["images"]
  classes = config.models.student.num_classes
  hard = synthetic.hard_labels(classes, len(images) // classes)
  lr = jnp.exp(student["log_lr"]) if protocol.learned_lr and "log_lr" in student else None
  if protocol.labels == "hard" or "labels" not in student:
    return images, hard, "hard", lr
  return images, student["labels"], config.label_kind, lr
