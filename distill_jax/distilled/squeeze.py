"""Networks that know the real set, for methods that look at them alone: squeezed teachers.

Each of `config.models` but "student" is one. Its weights are those of config.pretrained.NAME, or it
is trained here, at the start of a run, for `config.method.squeeze` updates: SGD with momentum 0.9,
weight decay 5e-4 and a cosine from 0.05, batches of 64 with augmentation for each image. Without a
real set it stays random, which serves plans alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from distill_jax.data import siamese
from distill_jax.distilled.real import Real
from distill_jax.losses import recovery
from distill_jax.models import resnet

BATCH, LR = 64, 0.05


def names(config) -> list[str]:
  """Of the teachers, in a fixed order."""
  return sorted(set(config.models) - {"student"})


def teachers(config, key: jax.Array, pretrained: dict[str, Any]) -> dict[str, Any]:
  """Name -> parameters, read, trained or random."""
  found = {}
  for i, name in enumerate(names(config)):
    given, own = config.models[name], jax.random.fold_in(key, i)
    if name in pretrained:
      found[name] = pretrained[name]
    elif "real" in pretrained:
      found[name] = train(config, given, pretrained["real"], own)
    else:
      found[name] = resnet.init(given, tuple(config.data.shape), own)
  return found


def train(config, given, real: Real, key: jax.Array) -> Any:
  """A ResNet trained on the real set, by every device the same: it is small."""
  of_weights, of_steps = jax.random.split(key)
  params = resnet.init(given, real.x.shape[1:], of_weights)
  tx = optax.chain(
    optax.add_decayed_weights(5e-4, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    optax.sgd(optax.cosine_decay_schedule(LR, config.method.squeeze), momentum=0.9),
  )

  def step(carry, key):
    params, opt = carry
    of_batch, of_augment = jax.random.split(key)
    rows = jax.random.randint(of_batch, (BATCH,), 0, len(real.x))
    x, label = real.x[rows], real.label[rows]
    x = siamese.each(of_augment, x, config.protocol.augment)

    def loss(params):
      logits, _, observed = resnet.train_apply(given, params, x)
      return recovery.cross_entropy(logits, label), observed

    gradient, observed = jax.grad(loss, has_aux=True)(params)
    updates, opt = tx.update(gradient, opt, params)
    return (optax.apply_updates(observed, updates), opt), None

  keys = jax.random.split(of_steps, config.method.squeeze)
  return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]


def loss(
  given, params: Any, x: jax.Array, label: jax.Array, *, r_bn: float, first: float
) -> jax.Array:
  """`recovery.recovery` of images [B, H, W, C] under one teacher, a scalar."""
  logits, _, seen = resnet.observe(given, params, x)
  distances = [recovery.batch_norm_distance(*met) for met in seen]
  total = recovery.batch_norm_total(distances, first=first)
  return recovery.recovery(logits, label, total, r_bn=r_bn)


def labels(config, teachers: dict[str, Any], images: jax.Array) -> jax.Array:
  """The teachers' logits of the images [N, classes], weighted by what they are known to score and
  divided by `config.method.temperature`: `recovery.committee`."""
  of_all = [resnet.apply(config.models[name], teachers[name], images)[0] for name in names(config)]
  weights = recovery.committee_weights(jnp.asarray(config.method.scores), temperature=10.0)
  return recovery.committee(jnp.stack(of_all), weights) / config.method.temperature
