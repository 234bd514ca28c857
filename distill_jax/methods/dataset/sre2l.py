"""SRe2L, CDA and CV-DD: images that trained networks recognise and whose batch-norm statistics are
those of the real set.

  loss = CE(phi(A(x)), y) + r_bn sum_l w_l (|mean_l - mu_l|_2 + |var_l - sigma^2_l|_2)

phi was trained on the real set beforehand (squeeze); mean_l and var_l are of the inputs of its
l-th batch norm, mu_l and sigma^2_l its running statistics, w_0 = `first` and the others 1; A is a
random crop enlarged to the whole, and a flip. At the end a teacher may label the images (relabel).
No real image enters a step. CDA lets the crops shrink as the run goes on. CV-DD draws `members` of
several teachers for a step and weighs their losses by the scores that each is known for.

The images lie in blocks of `method.block`, each with statistics of its own, `method.at_once` of
them side by side and the rest one after the other; a block has images of as many classes as can be.

Yin, Xing and Shen, Squeeze, Recover and Relabel (SRe2L, arXiv:2306.13092); Yin and Shen, Dataset
Distillation in Large Data Era (CDA, arXiv:2311.18838); Cui et al., Dataset Distillation via
Committee Voting (CV-DD, arXiv:2501.07575). The authors crop and flip a batch as one, and roll it
by up to 32 pixels; here each image has a crop of its own, and none is rolled.
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.data import views
from distill_jax.distilled import squeeze, synthetic
from distill_jax.losses import recovery
from distill_jax.mesh import split_batch
from distill_jax.method import Method, minimize


def make(config) -> Method:
  given, classes = config.method, config.models.student.num_classes
  shape, names = tuple(config.data.shape), squeeze.names(config)
  hard = synthetic.hard_labels(classes, config.per_class)
  block, at_once = given.block or len(hard), given.at_once
  rounds = len(hard) // (at_once * block)
  if rounds * at_once * block != len(hard):
    raise ValueError(f"{len(hard)} images are not in blocks of {block}, {at_once} at once")
  if len(given.scores) != len(names) or not 1 <= given.members <= len(names):
    raise ValueError(f"scores {given.scores}, members {given.members}: there are {len(names)}")
  tx = optim.make(config.optim, config.steps)

  def init(key, pretrained):
    of_teachers, of_images = jax.random.split(key)
    teachers = squeeze.teachers(config, of_teachers, pretrained)
    if "real" in pretrained:
      images = synthetic.start(config, of_images, pretrained["real"])
    else:
      images = jax.random.normal(of_images, (len(hard), *shape))
    student = dict(images=images)
    opt = tx.init(student)
    if given.relabel:
      student["labels"] = squeeze.labels(config, teachers, images)
    low, high = bounds(pretrained)
    frozen = dict(teachers=teachers, low=low, high=high)
    return dict(step=jnp.int32(0), student=student, opt=opt), frozen

  def bounds(pretrained):
    """What pixels may be: [C] each."""
    if "real" in pretrained:
      x = pretrained["real"].x
      return jnp.min(x, axis=(0, 1, 2)), jnp.max(x, axis=(0, 1, 2))
    return jnp.asarray(given.low), jnp.asarray(given.high)

  def seen(image, key, least):
    of_crop, of_flip = jax.random.split(key)
    x = views.crop(image, views.crop_box(of_crop, least, shape))
    return jnp.where(jax.random.bernoulli(of_flip) & given.flip, x[:, ::-1], x)

  def blocks_of(x):
    """[N, ...] -> [rounds, at_once, block, ...], the images of a block far apart."""
    return jnp.moveaxis(x.reshape(at_once, block, rounds, *x.shape[1:]), 2, 0)

  def step(state, frozen, batch, key):
    of_views, of_members = jax.random.split(key)
    least = recovery.least_crop(
      state["step"], steps=config.steps, milestone=given.milestone, least=given.least
    )
    members = jax.random.permutation(of_members, len(names))[: given.members]
    weights = recovery.committee_weights(jnp.asarray(given.scores)[members])

    def of_teacher(name):
      arch, params = config.models[name], frozen["teachers"][name]
      one = lambda x, y: squeeze.loss(  # noqa: E731
        arch, params, x, y, r_bn=given.r_bn, first=given.first
      )
      return jax.vmap(one)

    def of_blocks(images, label, keys):
      """[at_once] losses of [at_once, block, ...] images."""
      x = split_batch(jax.vmap(jax.vmap(seen, (0, 0, None)), (0, 0, None))(images, keys, least))
      known = [of_teacher(name) for name in names]
      losses = [jax.lax.switch(m, known, x, label) for m in members]
      return recovery.committee(jnp.stack(losses), weights)

    def loss(student, batch, key):
      parts = [blocks_of(a) for a in (student["images"], hard, jax.random.split(key, len(hard)))]
      losses = jax.lax.map(lambda part: jax.checkpoint(of_blocks)(*part), parts)
      return (jnp.sum(losses), jnp.float32(losses.size)), {}

    student = dict(images=state["student"]["images"])
    student, opt, metrics = minimize(tx, loss, student, state["opt"], batch, of_views)
    student["images"] = jnp.clip(student["images"], frozen["low"], frozen["high"])
    if given.relabel:
      student["labels"] = jax.lax.cond(
        ((state["step"] + 1) % config.eval_every == 0) | (state["step"] + 1 == config.steps),
        lambda: squeeze.labels(config, frozen["teachers"], student["images"]),
        lambda: state["student"]["labels"],
      )
    return dict(step=state["step"] + 1, student=student, opt=opt), metrics

  return Method(init, step)
