"""INFER: a few perturbations that all classes share, each made for one trained network.

  x' = x + u_m,   loss = sum_m CE(phi_m(x + u_m), y) + r_bn BN_m(x + u_m)

x are real images, b of each class, and stay as they are; a compensator u_m, [H, W, C], is optimised
for the m-th of M networks and added to one image of every class. What is stored are C b images and
M b compensators, as much as `per_class` images of C classes: b = floor(per_class C / (C + M)), at
least 1. What is trained on are the images alone and with each compensator, b (M + 1) of each class,
with the mean of all networks' logits as labels, which do not change with the epoch. BN is SRe2L's.

Zhang et al., Breaking Class Barriers: Efficient Dataset Distillation via Inter-Class Feature
Compensator (INFER, arXiv:2408.06927). Compensators start at 0.
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.distilled import squeeze, synthetic
from distill_jax.method import Method, minimize


def make(config) -> Method:
  given, classes, names = config.method, config.models.student.num_classes, squeeze.names(config)
  shape, count = tuple(config.data.shape), len(names)
  base = max(1, config.per_class * classes // (classes + count))  # images of a class, b above
  label = jnp.arange(classes)
  tx = optim.make(config.optim, config.steps)

  def init(key, pretrained):
    of_teachers, of_images = jax.random.split(key)
    real = pretrained["real"]
    rows = synthetic.random_rows(of_images, real, base)
    frozen = dict(
      teachers=squeeze.teachers(config, of_teachers, pretrained),
      images=real.x[rows].reshape(classes, base, *shape),
      low=jnp.min(real.x, axis=(0, 1, 2)),
      high=jnp.max(real.x, axis=(0, 1, 2)),
    )
    compensators = jnp.zeros((count, base, *shape))
    student = integrated(frozen, compensators)
    state = dict(student=student, compensators=compensators, opt=tx.init(compensators))
    return dict(state, step=jnp.int32(0)), frozen

  def compensated(frozen, u):
    """[classes, base, ...] images with u [base, ...]."""
    return jnp.clip(frozen["images"] + u, frozen["low"], frozen["high"])

  def integrated(frozen, compensators):
    """What is trained on, class after class."""
    versions = [frozen["images"], *(compensated(frozen, u) for u in compensators)]
    images = jnp.stack(versions, axis=1).reshape(-1, *shape)
    return dict(images=images, labels=squeeze.labels(config, frozen["teachers"], images))

  def step(state, frozen, batch, key):
    def of_teacher(name, u):
      """The sum over the base images, each with the statistics of its own image of all classes."""
      arch, params = config.models[name], frozen["teachers"][name]
      one = lambda x: squeeze.loss(  # noqa: E731
        arch, params, x, label, r_bn=given.r_bn, first=given.first
      )
      return jnp.sum(jax.vmap(one, in_axes=1)(compensated(frozen, u)))

    def loss(compensators, batch, key):
      total = sum(of_teacher(name, u) for name, u in zip(names, compensators, strict=True))
      return (total, jnp.float32(count * base)), {}

    compensators, opt, metrics = minimize(tx, loss, state["compensators"], state["opt"], batch, key)
    student = jax.lax.cond(
      ((state["step"] + 1) % config.eval_every == 0) | (state["step"] + 1 == config.steps),
      lambda: integrated(frozen, compensators),
      lambda: state["student"],
    )
    new = dict(student=student, compensators=compensators, opt=opt)
    return dict(new, step=state["step"] + 1), metrics

  return Method(init, step)
