"""How a distilled set is judged: a network is trained on it from random weights, then meets test
images. One protocol for every row of a table, stored with its numbers.

The published one (Zhao et al., arXiv:2006.05929, and those after it): SGD at 0.01 with momentum 0.9
and weight decay 5e-4, batches of 256, a tenth of the rate after half of the epochs, siamese
augmentation with parameters for each image (from arXiv:2102.08259 on), ConvNet-3; the network of
the last step, never of the best.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from distill_jax import method as method_lib
from distill_jax.data import siamese, soft_labels, views
from distill_jax.losses.soft_labels import cross_entropy, expanded

CHUNK = 500  # test images at a time
LOSSES = ("hard", "logits", "regression", "probabilities")


def default_config() -> ConfigDict:
  """The protocol of DSA, DM and MTT."""
  return ConfigDict(
    dict(
      epochs=1000,
      most_steps=0,  # stop after so many updates; 0: none but epochs
      batch_size=256,  # at most; batches of one epoch are of equal size
      lr=0.01,
      momentum=0.9,
      weight_decay=5e-4,
      augment=("color", "crop", "cutout", "flip", "scale", "rotate"),  # (): none
      seeds=3,
      labels="own",  # own: as the set has them | hard: the class alone
      learned_lr=False,  # train at the set's own learning rate, if it has one
    )
  )


def steps(protocol, images: int) -> int:
  """Updates of a training on so many images."""
  total = protocol.epochs * -(-images // protocol.batch_size)
  return min(total, protocol.most_steps) if protocol.most_steps else total


def train(
  protocol,
  given: ConfigDict,
  x: jax.Array,
  labels: Any,
  key: jax.Array,
  *,
  kind: str = "hard",
  lr: jax.Array | float | None = None,
  manifest: dict[str, Any] | None = None,
) -> Any:
  """Parameters of the network `given`, trained on a set from random weights.

  Args:
    protocol: as `default_config`.
    given: a classifier of `distill_jax.models`; running statistics of batch norms are followed.
    x: [N, H, W, C], preprocessed.
    labels: int [N]; or float [N, classes], see kind.
    key: of weights, order and augmentation.
    kind: "hard" (cross-entropy), "logits" (cross-entropy against their softmax), "regression"
      (squares, halved and summed over classes); "per_epoch", logits [epochs, N, classes]; or
      "views", dict(index, log_p) of `soft_labels.whole`: the views that were labelled take the
      place of protocol.augment. Epochs begin again after the last.
    lr: in place of protocol.lr.
    manifest: of the views.
  """
  model = method_lib.load("models", given.name)
  of_weights, of_order, of_images = jax.random.split(key, 3)
  params = model.init(given, x.shape[1:], of_weights)
  batches = -(-len(x) // protocol.batch_size)
  size, total = len(x) // batches, steps(protocol, len(x))
  lr = jnp.asarray(protocol.lr if lr is None else lr, jnp.float32)
  velocity = jax.tree.map(jnp.zeros_like, params)
  has_statistics = hasattr(model, "train_apply")
  loss_kind = dict(per_epoch="logits", views="probabilities").get(kind, kind)

  def met(rows, epoch, t):
    """Images of an update, and their labels."""
    if kind == "views":
      assert manifest is not None
      e = epoch % len(labels["index"])
      options = soft_labels.view_options(manifest)
      seen = views.batch(x, soft_labels.key(manifest), e, rows, **options)
      index, p = labels["index"][e, rows], jnp.exp(labels["log_p"][e, rows])
      return seen, expanded(index, p, num_classes=manifest["classes"])
    seen = siamese.each(jax.random.fold_in(of_images, t), x[rows], protocol.augment)
    return seen, (labels[epoch % len(labels)] if kind == "per_epoch" else labels)[rows]

  def loss(params, x, labels):
    if has_statistics:
      logits, _, seen = model.train_apply(given, params, x)
    else:
      (logits, _), seen = model.apply(given, params, x), params
    return jnp.mean(loss_of(loss_kind, logits, labels)), seen

  def moved(params, seen, velocity, rate):
    params = jax.tree.map(lambda w, v: w - rate * v, params, velocity)
    if not has_statistics:
      return params
    return jax.tree.map(jnp.where, model.is_statistic(params), seen, params)

  def step(carry, t):
    params, velocity, order = carry
    epoch, batch = t // batches, t % batches
    if batches > 1:
      order = jax.lax.cond(
        batch == 0,
        lambda: jax.random.permutation(jax.random.fold_in(of_order, epoch), len(x)),
        lambda: order,
      )
    rows = jax.lax.dynamic_slice(order, (batch * size,), (size,))
    gradient, seen = jax.grad(loss, has_aux=True)(params, *met(rows, epoch, t))
    rate = jnp.where(t < total // 2 + 1, lr, lr / 10)
    decayed = jax.tree.map(lambda g, w: g + protocol.weight_decay * w, gradient, params)
    velocity = jax.tree.map(lambda v, g: protocol.momentum * v + g, velocity, decayed)
    return (moved(params, seen, velocity, rate), velocity, order), None

  carry = (params, velocity, jnp.arange(len(x)))
  return jax.lax.scan(step, carry, jnp.arange(total))[0][0]


def loss_of(kind: str, logits: jax.Array, labels: jax.Array) -> jax.Array:
  """[N] losses of logits [N, classes] against labels of a kind: see `train`."""
  match kind:
    case "hard":
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    case "logits":
      return optax.softmax_cross_entropy(logits, jax.nn.softmax(labels))
    case "regression":
      return jnp.sum(jnp.square(logits - labels), axis=-1) / 2
    case "probabilities":
      return cross_entropy(logits, labels)
    case other:
      raise ValueError(f"labels of kind {other!r}: {', '.join(LOSSES)}")


def accuracy(given: ConfigDict, params: Any, x: np.ndarray, label: np.ndarray) -> jax.Array:
  """The share of images [N, H, W, C] whose largest logit is their class."""
  model = method_lib.load("models", given.name)
  rows = -len(x) % CHUNK
  padded = jnp.pad(jnp.asarray(x), ((0, rows), (0, 0), (0, 0), (0, 0)))
  chunks = padded.reshape(-1, CHUNK, *x.shape[1:])
  guess = jax.lax.map(lambda x: jnp.argmax(model.apply(given, params, x)[0], axis=-1), chunks)
  return jnp.mean(guess.reshape(-1)[: len(x)] == label)
