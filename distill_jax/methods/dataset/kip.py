"""KIP: synthetic images, and perhaps labels, from which kernel ridge regression predicts the labels
of real images.

  loss = mean (K_ts (K_ss + ridge I)^-1 y_s - y_t)^2 / 2

K is the tangent kernel of an infinitely wide network, in closed form, or a Gaussian. No network is
trained, and none is drawn. Label solve leaves the images as they are: the labels that minimise the
loss have a closed form, one step on many targets is all.

The kernel is float32. A ridge of 1e-6 of its mean diagonal, as the authors have in float64, is near
the rounding of a solve with a hundred images or more: the experiment has a larger one there.

Paper: Nguyen, Chen, Lee, Dataset Meta-Learning from Kernel Ridge-Regression (arXiv:2011.00050).
Paper: Nguyen, Novak, Xiao, Lee, Dataset Distillation with Infinitely Wide Convolutional Networks
  (arXiv:2107.13034).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.distilled import real as real_lib
from distill_jax.distilled import synthetic
from distill_jax.losses import infinite_width, kernels
from distill_jax.method import Method, minimize

KERNELS = ("fc", "conv", "rbf")
CHUNK = 100  # rows of real images at a time
Kernel = Callable[[jax.Array, jax.Array | None], jax.Array]


def make(config) -> Method:
  given, wanted = config.models.student, config.method
  classes = given.num_classes
  tx = optim.make(config.optim, config.steps)
  k = kernel(wanted)
  fixed = synthetic.regression_targets(synthetic.hard_labels(classes, config.per_class), classes)

  def init(key, pretrained):
    real = pretrained["real"]
    student = dict(images=synthetic.start(config, key, real))
    if wanted.labels != "fixed":
      student["labels"] = fixed
    return dict(step=jnp.int32(0), student=student, opt=tx.init(student)), dict(real=real)

  def step(state, frozen, batch, key):
    x, label = real_lib.at_random(key, frozen["real"], wanted.targets)
    y_t = synthetic.regression_targets(label, classes)

    def grams(images):
      k_ss = k(images, None)
      return k_ss, across(k, x, images), kernels.relative_ridge(k_ss, wanted.ridge)

    def loss(student, batch, key):
      k_ss, k_ts, ridge = grams(student["images"])
      value = kernels.kip(k_ss, k_ts, student.get("labels", fixed), y_t, ridge=ridge)
      return (value, jnp.float32(1)), {}

    student, opt = state["student"], state["opt"]
    if wanted.labels == "solved":
      k_ss, k_ts, ridge = grams(student["images"])
      student = dict(student, labels=kernels.label_solve(k_ss, k_ts, y_t, ridge=ridge))
      metrics = dict(loss=loss(student, batch, key)[0])
    else:
      student, opt, metrics = minimize(tx, loss, student, opt, batch, key)
    return dict(step=state["step"] + 1, student=student, opt=opt), metrics

  return Method(init, step)


def kernel(wanted) -> Kernel:
  """(x [N, H, W, C], y [M, H, W, C] or None for x itself) -> [N, M].

  Args:
    wanted: config.method: kernel; depth of fc and conv; pool of conv, whose memory grows with the
      square of the pixels; gamma of rbf.

  Raises:
    ValueError: no such kernel.
  """
  match wanted.kernel:
    case "fc":
      return lambda x, y: infinite_width.fully_connected(x, y, depth=wanted.depth).ntk
    case "conv":
      both = dict(depth=wanted.depth, pool=wanted.pool)
      return lambda x, y: infinite_width.convolutional(x, y, **both).ntk
    case "rbf":
      return lambda x, y: kernels.rbf(x, x if y is None else y, gamma=wanted.gamma)
    case other:
      raise ValueError(f"method.kernel: no {other!r}: {', '.join(KERNELS)}")


def across(k: Kernel, x: jax.Array, y: jax.Array) -> jax.Array:
  """k(x, y) [N, M] by rows, `CHUNK` of them at a time, also in the gradient's memory."""
  row = jax.checkpoint(lambda x: k(x[None], y)[0])
  return jax.lax.map(row, x, batch_size=CHUNK)
