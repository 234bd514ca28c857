"""Real images in place of learned ones: what every distilled set has to beat.

The student is the rows of the real set that `init` chooses, `per_class` of each class; a step
changes nothing. `config.method.how` is one of

  random      as they come
  herding     their mean feature follows that of the class
  k_center    the nearest to the class's mean feature, then always the farthest from those chosen
  k_means     the nearest to the means of clusters
  el2n, grand, forgetting   the highest scores of early training (`keep` hard), or the lowest (easy)

Networks are trained in `init` on the real set, without augmentation; test images are never seen. No
method of a paper: data/coresets.py has the references. The papers of the scores keep the hard
examples, and of large fractions of a set; for few images the easy ones serve better, as Sorscher et
al., Beyond neural scaling laws: beating power law scaling via data pruning (arXiv:2206.14486), say.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from distill_jax import method as method_lib
from distill_jax.config import ConfigError, did_you_mean
from distill_jax.data import coresets
from distill_jax.distilled import synthetic
from distill_jax.distilled.real import Real, rows_of_each_class
from distill_jax.method import Method

OF_FEATURES = ("herding", "k_center", "k_means")
OF_SCORES = ("el2n", "grand", "forgetting")
CHUNK = 250  # images at a time


def make(config) -> Method:
  for key, value, words in (
    ("how", config.method.how, ("random", *OF_FEATURES, *OF_SCORES)),
    ("features", config.method.features, ("network", "pixels")),
    ("keep", config.method.keep, ("hard", "easy")),
  ):
    if value not in words:
      raise ConfigError(f"method.{key}: no {value!r}." + did_you_mean(value, words))

  def init(key, pretrained):
    real = pretrained["real"]
    rows = chosen(config, key, real).astype(jnp.int32)
    return dict(step=jnp.int32(0), student=dict(rows=rows)), dict(real=real)

  def step(state, frozen, batch, key):
    return dict(state, step=state["step"] + 1), {}

  return Method(init, step)


def chosen(config, key: jax.Array, real: Real) -> jax.Array:
  """Rows [classes per_class], class after class."""
  of_choice, of_networks = jax.random.split(key)
  how, n = config.method.how, config.per_class
  if how == "random":
    return synthetic.random_rows(of_choice, real, n)
  if how in OF_FEATURES:
    x = features(config, of_networks, real)
    return rows_of_each_class(
      real, lambda inside, key: by_features(how, x, n, inside, key), of_choice
    )
  keys = jax.random.split(of_networks, config.method.networks)
  score = jnp.mean(jax.lax.map(lambda key: scores(config, key, real), keys), axis=0)
  score = score if config.method.keep == "hard" else -score

  def top(inside, key):
    return jax.lax.top_k(jnp.where(inside, score, -jnp.inf), n)[1]

  return rows_of_each_class(real, top, of_choice)


def features(config, key: jax.Array, real: Real) -> jax.Array:
  """[N, D]: pixels, or what a trained network sees."""
  if config.method.features == "pixels":
    return real.x.reshape(len(real.x), -1)
  model, given = method_lib.load("models", config.models.student.name), config.models.student
  params, _ = train(config, key, real)
  one = lambda x: model.apply(given, params, x[None])[1][0]  # noqa: E731
  return jax.lax.map(one, real.x, batch_size=CHUNK)


def by_features(how: str, x: jax.Array, n: int, inside: jax.Array, key: jax.Array) -> jax.Array:
  """n rows of features x [N, D] among those that are inside [N]."""
  if how == "herding":
    return coresets.herding(x, n, where=inside)
  if how == "k_means":
    return coresets.k_means(x, n, key=key, where=inside)
  first = coresets.herding(x, 1, where=inside)
  if n == 1:
    return first
  rest = coresets.k_center(x, n - 1, start=first, where=inside)
  return jnp.concatenate([first, rest])


def scores(config, key: jax.Array, real: Real) -> jax.Array:
  """[N], of one network."""
  model, given = method_lib.load("models", config.models.student.name), config.models.student
  how = config.method.how
  params, correct = train(config, key, real)
  if how == "forgetting":
    return coresets.forgetting_scores(correct).astype(jnp.float32)

  def loss(params, x, label):
    logits, _ = model.apply(given, params, x[None])
    return optax.softmax_cross_entropy_with_integer_labels(logits[0], label)

  def one(x, label):
    if how == "grand":
      return coresets.gradient_norm(loss, params, x[None], label[None])[0]
    logits, _ = model.apply(given, params, x[None])
    return coresets.error_norm(logits, jax.nn.one_hot(label[None], given.num_classes))[0]

  chunk = CHUNK if how == "el2n" else 16  # a gradient for each image
  return jax.lax.map(lambda row: one(*row), (real.x, real.label), batch_size=chunk)


def train(config, key: jax.Array, real: Real) -> tuple[Any, jax.Array]:
  """Parameters after `epochs`, and whether each image was right when it was met: [N, epochs]."""
  model, given = method_lib.load("models", config.models.student.name), config.models.student
  of_weights, of_order = jax.random.split(key)
  images = len(real.x)
  batches = -(-images // config.method.batch_size)
  size = images // batches  # the rest sits an epoch out
  tx = optax.sgd(config.method.network_lr, momentum=0.9)

  def loss(params, rows):
    logits, _ = model.apply(given, params, real.x[rows])
    label = real.label[rows]
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return jnp.mean(nats), jnp.argmax(logits, axis=-1) == label

  def update(carry, rows):
    params, opt, correct = carry
    gradient, right = jax.grad(loss, has_aux=True)(params, rows)
    updates, opt = tx.update(gradient, opt)
    return (optax.apply_updates(params, updates), opt, correct.at[rows].set(right)), None

  def epoch(carry, key):
    order = jax.random.permutation(key, images)[: batches * size]
    carry, _ = jax.lax.scan(update, carry, order.reshape(batches, size))
    return carry, carry[2]

  params = model.init(given, real.x.shape[1:], of_weights)
  carry = params, tx.init(params), jnp.zeros(images, bool)
  carry, correct = jax.lax.scan(epoch, carry, jax.random.split(of_order, config.method.epochs))
  return carry[0], correct.T
