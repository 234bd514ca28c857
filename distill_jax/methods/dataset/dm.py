"""DM: synthetic images whose mean features under random networks are those of real images.

  loss = sum over classes of |mean_i f(A(s_i)) - mean_j f(A(r_j))|^2

f is a new random network at every step, A an augmentation that both sides share. No network is
trained, so a step is two forward passes and one backward.

Paper: Zhao, Bilen, Dataset Condensation with Distribution Matching (arXiv:2110.04181), eq. 4.
"""

import jax
import jax.numpy as jnp

from distill_jax import method as method_lib
from distill_jax import optim
from distill_jax.data import siamese
from distill_jax.distilled import real as real_lib
from distill_jax.distilled import synthetic
from distill_jax.losses import matching
from distill_jax.method import Method, minimize


def make(config) -> Method:
  given, shape = config.models.student, tuple(config.data.shape)
  classes = given.num_classes
  model = method_lib.load("models", given.name)
  tx = optim.make(config.optim, config.steps)
  hard = synthetic.hard_labels(classes, config.per_class)

  def init(key, pretrained):
    real = pretrained["real"]
    student = dict(images=synthetic.start(config, key, real))
    return dict(step=jnp.int32(0), student=student, opt=tx.init(student)), dict(real=real)

  def step(state, frozen, batch, key):
    of_network, of_images, of_augment = jax.random.split(key, 3)
    params = model.init(given, shape, of_network)
    real = frozen["real"]
    rows = real_lib.rows_of_classes(of_images, real, config.real_per_class)

    def features(x):
      return model.apply(given, params, siamese.shared(of_augment, x, config.augment))[1]

    target = real_lib.in_chunks(features, real, rows)

    def loss(student, batch, key):
      distances = matching.distribution_matching(
        features(student["images"]),
        target,
        synthetic_labels=hard,
        real_labels=real.label[rows],
        num_classes=classes,
      )
      return (jnp.sum(distances), jnp.float32(1)), {}

    student, opt, metrics = minimize(tx, loss, state["student"], state["opt"], batch, key)
    return dict(step=state["step"] + 1, student=student, opt=opt), metrics

  return Method(init, step)
