"""How well kernel ridge regression from a distilled set predicts test images: what KIP optimises,
with the kernel of its config. No network is trained.

  accuracy   the share of test images whose largest prediction is their class
"""

import jax
import jax.numpy as jnp

from distill_jax import method as method_lib
from distill_jax.distilled import synthetic
from distill_jax.losses import kernels
from distill_jax.methods.dataset import kip


def make(config):
  x, label = method_lib.load("data", config.data.name).held_out(config, "test")
  classes = config.models.student.num_classes
  k = kip.kernel(config.method)

  @jax.jit
  def accuracy(student, x, label):
    images = student["images"]
    hard = synthetic.hard_labels(classes, len(images) // classes)
    y_s = student.get("labels", synthetic.regression_targets(hard, classes))
    k_ss = k(images, None)
    ridge = kernels.relative_ridge(k_ss, config.method.ridge)
    predicted = kernels.predict(k_ss, kip.across(k, x, images), y_s, ridge=ridge)
    return jnp.mean(jnp.argmax(predicted, axis=1) == label)

  return lambda state, frozen: dict(accuracy=float(accuracy(state["student"], x, label)))
