"""Networks trained on all of the real data, whose parameters are kept at the end of every epoch:
the trajectories that distilled sets are made to repeat.

  trajectory  leaves [epochs + 1, experts, ...]; row 0 is where training began

Trained as the authors of trajectory matching did: SGD at 0.01 without momentum, batches of 256,
siamese augmentation with parameters for each image (Cazenavette et al., arXiv:2203.11932).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from distill_jax import method as method_lib
from distill_jax.data import siamese
from distill_jax.distilled.real import Real
from distill_jax.losses import matching
from distill_jax.mesh import split_batch

Tree = Any  # parameters, or a trajectory of them


def default_config() -> ConfigDict:
  """Experts of MTT on CIFAR-10."""
  return ConfigDict(
    dict(
      count=100,
      epochs=50,
      batch_size=256,  # at most; batches of one epoch are of equal size
      lr=0.01,
      momentum=0.0,
      weight_decay=0.0,
      rho=0.0,  # length of the sharpness-aware ascent; 0: none
      alpha=0.0,  # share of the gradient's orthogonal part that is climbed: GSAM
      adaptive=False,  # the ascent in units of each weight
      early=(),  # factors of the loss in the first epochs, then 1
      penalty=0.0,  # weight of (|d sum of logits / d x| - 1)^2
    )
  )


def ftd(given: ConfigDict) -> None:
  """Flat trajectories: GSAM with the values of FTD's authors for CIFAR-10 at 1 and 10 images.

  Du, Jiang, Tan, Zhou, Li, Minimizing the Accumulated Trajectory Error to Improve Dataset
  Distillation (arXiv:2211.11004). Their code always takes the adaptive ascent.
  """
  given.update(dict(rho=0.01, alpha=0.3, adaptive=True))


def smooth(given: ConfigDict) -> None:
  """Smooth trajectories: the first epochs' loss scaled down, and a gradient penalty.

  Shen, Yang, Lam, Efficient Dataset Distillation through Alignment with Smooth and High-Quality
  Expert Trajectories (arXiv:2310.10541), with the values of the authors' code, whose norm is of a
  pixel's channels; here it is that of an image. Their fall of the rate after half of the epochs is
  left out.
  """
  given.update(
    dict(momentum=0.9, weight_decay=1e-3, lr=0.004, early=(0.5, 0.6, 0.7, 0.8, 0.9), penalty=0.1)
  )


def start(config, key: jax.Array) -> dict[str, Tree]:
  """Experts at random weights: params and the optimiser's state, leaves [experts, ...]."""
  given = config.models.student
  model = method_lib.load("models", given.name)
  keys = jax.random.split(key, config.method.experts.count)
  params = jax.vmap(lambda key: model.init(given, tuple(config.data.shape), key))(keys)
  return dict(params=params, opt=jax.vmap(_optimizer(config).init)(params))


def epoch(
  config, experts: dict[str, Tree], real: Real, number: jax.Array, key: jax.Array
) -> tuple[dict[str, Tree], jax.Array]:
  """All experts after one more epoch, one after the other, and their mean loss.

  Args:
    config: reads method.experts, models.student, augment.
    experts: as `start` gives them.
    real: the training set.
    number: of the epoch, from 0.
    key: of order and augmentation.
  """
  tx = _optimizer(config)
  batches = -(-len(real.x) // config.method.experts.batch_size)
  size = len(real.x) // batches

  def update(expert, given):
    rows, key = given
    x, label = split_batch(real.x[rows]), real.label[rows]
    loss, gradient = gradient_of(config, expert["params"], x, label, number, key)
    updates, opt = tx.update(gradient, expert["opt"], expert["params"])
    return dict(params=optax.apply_updates(expert["params"], updates), opt=opt), loss

  def one(given):
    expert, key = given
    of_order, of_images = jax.random.split(key)
    order = jax.random.permutation(of_order, len(real.x))[: batches * size]
    rows = order.reshape(batches, size), jax.random.split(of_images, batches)
    expert, losses = jax.lax.scan(update, expert, rows)
    return expert, jnp.mean(losses)

  keys = jax.random.split(key, config.method.experts.count)
  experts, losses = jax.lax.map(one, (experts, keys))  # vmap: grouped convolutions, slow on a CPU
  return experts, jnp.mean(losses)


def gradient_of(config, params: Tree, x, label, number, key) -> tuple[jax.Array, Tree]:
  """Loss and direction of one update; two gradients where there is a sharpness-aware ascent."""
  given = config.method.experts
  slope = jax.value_and_grad(functools.partial(_loss, config))
  loss, gradient = slope(params, x, label, number, key)
  if not given.rho:
    return loss, gradient
  worst = matching.gsam_ascent(params, gradient, rho=given.rho, adaptive=given.adaptive)
  _, perturbed = slope(worst, x, label, number, key)
  return loss, matching.gsam_gradient(gradient, perturbed, alpha=given.alpha)


def train(config, real: Real, key: jax.Array) -> Tree:
  """A trajectory: `method.experts` from random weights to their last epoch."""
  of_weights, of_epochs = jax.random.split(key)
  experts = start(config, of_weights)

  def step(experts, number):
    experts, _ = epoch(config, experts, real, number, jax.random.fold_in(of_epochs, number))
    return experts, experts["params"]

  _, later = jax.lax.scan(step, experts, jnp.arange(config.method.experts.epochs))
  return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), experts["params"], later)


def _loss(config, params, x, label, number, key):
  model, given = method_lib.load("models", config.models.student.name), config.method.experts
  logits = lambda x: model.apply(config.models.student, params, x)[0]  # noqa: E731
  nats = optax.softmax_cross_entropy_with_integer_labels(
    logits(siamese.each(key, x, config.augment)), label
  )
  loss = jnp.mean(nats)
  if given.early:
    factors = jnp.array([*given.early, 1.0])
    loss = loss * factors[jnp.minimum(number, len(given.early))]
  if given.penalty:
    slope = jax.grad(lambda x: jnp.sum(logits(x)))(x)
    norm = jnp.sqrt(jnp.sum(jnp.square(slope), axis=(1, 2, 3)) + 1e-12)
    loss = loss + given.penalty * jnp.mean(jnp.square(norm - 1))
  return loss


def _optimizer(config) -> optax.GradientTransformation:
  given = config.method.experts
  sgd = optax.sgd(given.lr, momentum=given.momentum or None)
  if not given.weight_decay:
    return sgd
  return optax.chain(optax.add_decayed_weights(given.weight_decay), sgd)
