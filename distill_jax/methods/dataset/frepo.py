"""FRePo: synthetic images and labels from which ridge regression on a network's features predicts
the labels of real images.

  loss = mean over real images of |K_ts (K_ss + ridge I)^-1 y_s - y_t|^2 / 2 + margin of y_s

K = F F^T of the features of a network out of a pool. The gradient flows through the synthetic
images' features alone: no training is unrolled. The network that was drawn then takes one step of
Adam on the synthetic set, and is drawn anew after `method.most` of them.

The margin is the authors' code's. Their networks double the width with each block and have batch
norm in training; here they are those of `config.models`.

Paper: Zhou, Nezhadarya, Ba, Dataset Distillation using Neural Feature Regression
  (arXiv:2206.00719), algorithm 1.
"""

import jax
import jax.numpy as jnp
import optax

from distill_jax import method as method_lib
from distill_jax import optim
from distill_jax.distilled import pool as pool_lib
from distill_jax.distilled import protocol, synthetic
from distill_jax.distilled import real as real_lib
from distill_jax.losses import kernels
from distill_jax.method import Method, minimize


def make(config) -> Method:
  given, shape, wanted = config.models.student, tuple(config.data.shape), config.method
  classes = given.num_classes
  model = method_lib.load("models", given.name)
  tx, adam = optim.make(config.optim, config.steps), optax.adam(wanted.network_lr)
  draw = pool_lib.drawing(lambda key: model.init(given, shape, key), adam)

  def init(key, pretrained):
    of_images, of_pool = jax.random.split(key)
    real = pretrained["real"]
    student = dict(
      images=synthetic.start(config, of_images, real), labels=labels(classes, config.per_class)
    )
    pool = pool_lib.start(draw, of_pool, wanted.pool)
    state = dict(step=jnp.int32(0), student=student, opt=tx.init(student), pool=pool)
    return state, dict(real=real)

  def step(state, frozen, batch, key):
    of_network, of_images, of_draw = jax.random.split(key, 3)
    i = jax.random.randint(of_network, (), 0, wanted.pool)
    params = pool_lib.take(state["pool"], i)["params"]
    x, label = real_lib.at_random(of_images, frozen["real"], wanted.targets)
    y_t = synthetic.regression_targets(label, classes)
    features_t = model.apply(given, params, x)[1]

    def loss(student, batch, key):
      features_s = model.apply(given, params, student["images"])[1]
      fit = kernels.frepo(features_s, features_t, student["labels"], y_t, scale=wanted.ridge)
      margin = kernels.label_margin(student["labels"], most=1 / classes)
      return (fit + margin, jnp.float32(1)), dict(fit=(fit, jnp.float32(1)))

    student, opt, metrics = minimize(tx, loss, state["student"], state["opt"], batch, key)

    def squares(params):
      logits, _ = model.apply(given, params, student["images"])
      return jnp.mean(protocol.loss_of("regression", logits, student["labels"]))

    pool = pool_lib.update(state["pool"], i, squares, adam, draw, of_draw, most=wanted.most)
    return dict(step=state["step"] + 1, student=student, opt=opt, pool=pool), metrics

  return Method(init, step)


def labels(classes: int, per_class: int) -> jax.Array:
  """(one-hot - 1 / classes) / sqrt(classes / 10), to begin with: [classes per_class, classes]."""
  hard = synthetic.hard_labels(classes, per_class)
  return synthetic.regression_targets(hard, classes) / (classes / 10) ** 0.5
