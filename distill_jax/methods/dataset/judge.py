"""A set from a folder in place of a learned one, judged by a protocol.

The folder `method.set`, relative to here or to the project, is one of distilled/artifact.py: our
own, or one that it read out of the files of others. Its images are the student, with their labels
and learned rate where it has them. With `method.views`, a folder of distill_jax/relabel.py,
networks meet in every epoch the crops, flips and mixtures that were labelled, and those labels
alone.

No method of a paper; steps change nothing.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import method as method_lib
from distill_jax.config import ConfigError
from distill_jax.data import soft_labels
from distill_jax.distilled import artifact, synthetic
from distill_jax.method import Method
from distill_jax.models.pretrained import ROOT


def make(config) -> Method:
  """Raises ConfigError if the set is not one of these images and classes."""
  given = config.method
  if not given.set:
    raise ConfigError("method.set: name the folder of a set (distilled/artifact.py writes one).")
  here, classes = pathlib.Path(given.set).expanduser(), config.models.student.num_classes
  folder = here if here.is_dir() else ROOT / given.set
  fitted = method_lib.load("data", config.data.name).fitted(config)
  made = artifact.load(folder, expect=fitted)
  if made.images.shape[1:] != tuple(config.data.shape):
    shapes = f"{made.images.shape[1:]}, not {tuple(config.data.shape)}"
    raise ConfigError(f"{folder}: images are {shapes}: set data to what the set was made of.")
  found = artifact.classes_of(made)
  if not np.array_equal(found, synthetic.hard_labels(classes, len(found) // classes)):
    raise ConfigError(f"{folder}: not as many images of each of {classes} classes, one by one.")
  if made.label_kind != config.label_kind:
    raise ConfigError(
      f"{folder}: labels are {made.label_kind!r}: set label_kind={made.label_kind}."
    )
  student: dict[str, Any] = dict(images=made.images, labels=made.labels)
  if made.lr is not None:
    student["log_lr"] = np.log(np.float32(made.lr))
  if given.views:
    labels = pathlib.Path(given.views).expanduser()
    soft_labels.check(soft_labels.read_manifest(labels), dict(classes=classes), labels)
    index, log_p = soft_labels.whole(labels, made.images)
    student["views"] = dict(index=index, log_p=log_p)

  def init(key, pretrained):
    return dict(step=jnp.int32(0), student=jax.tree.map(jnp.asarray, student)), {}

  def step(state, frozen, batch, key):
    return dict(state, step=state["step"] + 1), {}

  return Method(init, step)
