"""KRR-ST: synthetic images and vectors from which ridge regression on a network's features predicts
what a self-supervised network makes of real images. No label of a real image is read.

  loss = mean (K_ts (K_ss + ridge I)^-1 y_s - g(x_t))^2

K = F F^T of the features, a 1 appended, of a network out of a pool that is trained on the synthetic
pairs, as in `frepo`. g is a network of the same architecture, trained on the real images when the
run begins, `method.target_steps` of Adam on the loss of Barlow Twins with a linear projector, and
its features are the targets. Who wants a longer training of g, or a larger g, has the place here.

The set has no classes: images are in no order, and labels are vectors as wide as g's features. What
it is good for is told by the eval `probe`.

In the paper g is a ResNet-18, and networks of the pool begin at many ages, here at 0. Barlow Twins:
Zbontar, Jing, Misra, LeCun, Deny (arXiv:2103.03230).

Paper: Lee, Lee, Hwang, Self-Supervised Dataset Distillation for Transfer Learning
  (arXiv:2310.06511).
"""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from distill_jax import method as method_lib
from distill_jax import optim
from distill_jax.data import siamese
from distill_jax.distilled import pool as pool_lib
from distill_jax.distilled import real as real_lib
from distill_jax.losses import kernels
from distill_jax.mesh import split_batch
from distill_jax.method import Method, minimize

CHUNK = 500  # real images at a time


def make(config) -> Method:
  shape, wanted = tuple(config.data.shape), config.method
  model = method_lib.load("models", config.models.student.name)
  width = feature_width(config)
  given = with_outputs(config, width)
  tx = optim.make(config.optim, config.steps)
  decay = optax.add_decayed_weights(wanted.network_decay)
  sgd = optax.chain(decay, optax.sgd(wanted.network_lr, momentum=0.9))
  draw = pool_lib.drawing(lambda key: model.init(given, shape, key), sgd)

  def init(key, pretrained):
    of_images, of_pool = jax.random.split(key)
    real = pretrained["real"]
    targets = self_supervised(config, real, jax.random.key(config.seed))
    size = config.per_class * len(real.first)
    rows = jax.random.choice(of_images, len(real.x), (size,), replace=False)
    student = dict(images=real.x[rows], labels=targets[rows])
    pool = pool_lib.start(draw, of_pool, wanted.pool)
    state = dict(step=jnp.int32(0), student=student, opt=tx.init(student), pool=pool)
    return state, dict(real=real, targets=targets)

  def step(state, frozen, batch, key):
    of_network, of_images, of_draw = jax.random.split(key, 3)
    i = jax.random.randint(of_network, (), 0, wanted.pool)
    params = pool_lib.take(state["pool"], i)["params"]
    rows = jax.random.randint(of_images, (wanted.targets,), 0, len(frozen["targets"]))
    features_t = model.apply(given, params, split_batch(frozen["real"].x[rows]))[1]

    def loss(student, batch, key):
      features_s = model.apply(given, params, student["images"])[1]
      y_s, y_t = student["labels"], frozen["targets"][rows]
      value = kernels.krr_st(features_s, features_t, y_s, y_t, scale=wanted.ridge)
      return (value, jnp.float32(1)), {}

    student, opt, metrics = minimize(tx, loss, state["student"], state["opt"], batch, key)

    def squares(params):
      outputs, _ = model.apply(given, params, student["images"])
      return jnp.mean(jnp.square(outputs - student["labels"]))

    pool = pool_lib.update(state["pool"], i, squares, sgd, draw, of_draw, most=wanted.most)
    return dict(step=state["step"] + 1, student=student, opt=opt, pool=pool), metrics

  return Method(init, step)


def with_outputs(config, outputs: int) -> ConfigDict:
  """The student's architecture with so many outputs."""
  return ConfigDict(dict(config.models.student, num_classes=outputs))


def feature_width(config) -> int:
  """D of the student's features [B, D]."""
  given, shape = config.models.student, tuple(config.data.shape)
  model = method_lib.load("models", given.name)
  params = jax.eval_shape(lambda key: model.init(given, shape, key), jax.random.key(0))
  image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  return jax.eval_shape(lambda p, x: model.apply(given, p, x)[1], params, image).shape[1]


def self_supervised(config, real: real_lib.Real, key: jax.Array) -> jax.Array:
  """Features of all real images [N, D] of a network trained by Barlow Twins on them: g."""
  wanted, shape = config.method, tuple(config.data.shape)
  given = with_outputs(config, wanted.projection)
  model = method_lib.load("models", given.name)
  of_weights, of_steps = jax.random.split(key)
  params = model.init(given, shape, of_weights)
  adam = optax.adam(wanted.target_lr)

  def view(key, x):
    """Two operations in a row, drawn for the batch with parameters of each image."""
    for each in jax.random.split(key):
      x = siamese.each(each, x, config.protocol.augment)
    return x

  def descend(carry, t):
    params, opt = carry
    of_images, *of_views = jax.random.split(jax.random.fold_in(of_steps, t), 3)
    x, _ = real_lib.at_random(of_images, real, wanted.target_batch)

    def loss(params):
      return barlow_twins(*(model.apply(given, params, view(key, x))[0] for key in of_views))

    updates, opt = adam.update(jax.grad(loss)(params), opt)
    return (optax.apply_updates(params, updates), opt), None

  start = params, adam.init(params)
  (params, _), _ = jax.lax.scan(descend, start, jnp.arange(wanted.target_steps))
  return features(given, params, real.x)


def features(given, params, x: jax.Array) -> jax.Array:
  """Of images [N, H, W, C], `CHUNK` at a time: [N, D]."""
  model = method_lib.load("models", given.name)
  return jax.lax.map(lambda x: model.apply(given, params, x[None])[1][0], x, batch_size=CHUNK)


def barlow_twins(a: jax.Array, b: jax.Array, *, redundancy: float = 5e-3) -> jax.Array:
  """sum_i (1 - c_ii)^2 + redundancy sum_{i != j} c_ij^2, c the correlation of outputs of two views.

  Zbontar et al., Barlow Twins (arXiv:2103.03230), eq. 1 and 2; the centred outputs are divided by
  sqrt(variance + 1e-5).

  Args:
    a, b: [B, D].

  Returns:
    A scalar.
  """

  def normal(x):
    return (x - jnp.mean(x, axis=0)) / jnp.sqrt(jnp.var(x, axis=0) + 1e-5)

  c = normal(a).T @ normal(b) / len(a)
  same = jnp.eye(len(c), dtype=bool)
  return jnp.sum(jnp.where(same, jnp.square(1 - c), redundancy * jnp.square(c)))
