"""MTT and those after it: training on the synthetic images ends where an expert's ended.

  w_0 = expert at epoch t,  w_{k+1} = w_k - a grad CE(A(s), y)(w_k),  k < syn_steps
  loss = |w_N - expert at t + M|^2 / |expert at t - expert at t + M|^2

The learning rate a is learned with the images, as its logarithm: it stays positive, which the
authors' does not have to. `method.lr_lr` is in the authors' units: the first step is as long as
theirs.

How the N steps are differentiated, `method.unroll`: full, remat, sqrt (one gradient), or tesla (in
constant memory, without what the parameters owe to earlier images): distilled/unroll.py.

With `soft_labels` and `growth` it is DATM: labels are learned, from the mean logits of the experts
that are right; images begin as real ones that experts know; later epochs are matched only later.

With the five keys after `lr_labels` it is AST, for smooth experts: images begin as real ones near
the means of clusters (`representative`), updates have `momentum`, the expert's epochs on the way
are matched too (`between`), the weights of convolutions start off the expert's path (`perturb`),
and the inner loss is smaller for early epochs and larger for late ones (`balanced`). The formulas
are those of the authors' code.

Paper: Cazenavette, Wang, Torralba, Efros, Zhu, Dataset Distillation by Matching Training
  Trajectories (arXiv:2203.11932), algorithm 1.
Paper: Cui, Wang, Si, Hsieh, Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory
  (arXiv:2211.10586), section 3.
Paper: Guo et al., Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching
  (arXiv:2310.05773).
Paper: Shen, Yang, Lam, Efficient Dataset Distillation through Alignment with Smooth and
  High-Quality Expert Trajectories (arXiv:2310.10541), section 4.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from distill_jax import method as method_lib
from distill_jax import optim
from distill_jax.config import ConfigError
from distill_jax.data import coresets, siamese
from distill_jax.distilled import experts as experts_lib
from distill_jax.distilled import protocol, synthetic
from distill_jax.distilled.real import rows_of_each_class
from distill_jax.distilled.unroll import UNROLLS, match
from distill_jax.mesh import split_batch
from distill_jax.method import Method, minimize

Tree = Any
CHUNK = 500  # real images at a time


def make(config) -> Method:
  given, arch = config.method, config.models.student
  if given.unroll not in UNROLLS:
    raise ConfigError(f"method.unroll: no {given.unroll!r}: {', '.join(UNROLLS)}.")
  model = method_lib.load("models", arch.name)
  hard = synthetic.hard_labels(arch.num_classes, config.per_class)
  kind = config.label_kind if given.soft_labels else "hard"
  tx = optax.partition(
    dict(
      images=optim.make(config.optim, config.steps),
      labels=optax.sgd(given.lr_labels, momentum=0.9),
      log_lr=optax.sgd(given.lr_lr / given.lr**2, momentum=0.5),
    ),
    lambda student: {name: name for name in student},
  )

  def gradient(params, data, step):
    """Of one inner step's loss in the parameters."""

    def loss(params):
      x = split_batch(data["images"][step["rows"]])
      x = siamese.each(step["key"], x, config.augment)
      labels = data.get("labels", hard)[step["rows"]]
      nats = jnp.mean(protocol.loss_of(kind, model.apply(arch, params, x)[0], labels))
      return step["scale"] * nats

    return jax.grad(loss)(params)

  def init(key, pretrained):
    of_images, of_experts = jax.random.split(key)
    real = pretrained["real"]
    trajectory = pretrained.get("experts")
    if trajectory is None:
      trajectory = experts_lib.train(config, real, of_experts)
    student = dict(log_lr=jnp.log(jnp.float32(given.lr)))
    last = jax.tree.map(lambda x: x[-1], trajectory)
    if given.soft_labels:
      logits = logits_of(config, last, real.x)
      rows, labels = known(of_images, logits, real, config.per_class)
      student.update(images=real.x[rows], labels=labels)
    elif given.representative:
      first = logits_of(config, jax.tree.map(lambda x: x[:1], last), real.x)[0]
      student.update(images=real.x[representative(of_images, first, real, config.per_class)])
    else:
      student.update(images=synthetic.start(config, of_images, real))
    state = dict(step=jnp.int32(0), student=student, opt=tx.init(student))
    kept = sampled(trajectory, given.max_start + given.expert_epochs)
    return dict(state, ema=optim.ema_init(config.ema, student)), dict(trajectory=kept)

  def step(state, frozen, batch, key):
    of_epoch, of_expert, of_steps, of_weights = jax.random.split(key, 4)
    trajectory = frozen["trajectory"]
    count = len(jax.tree.leaves(trajectory)[0][0])
    expert = jax.random.randint(of_expert, (), 0, count)
    epoch = jax.random.randint(of_epoch, (), given.min_start, last_start(given, state["step"]))
    start, *targets = (
      jax.tree.map(lambda x, e=e: x[epoch + e, expert], trajectory)
      for e in range(0, given.expert_epochs + 1, 1 if given.between else given.expert_epochs)
    )
    start = perturbed(of_weights, start, given.perturb) if given.perturb else start
    steps = batches(of_steps, len(hard), given.batch_syn or len(hard), given.syn_steps)
    scale = balance(epoch, given.max_start) if given.balanced else jnp.float32(1)
    steps["scale"] = jnp.full(given.syn_steps, scale)

    def loss(student, batch, key):
      data = {name: student[name] for name in ("images", "labels") if name in student}
      lr = jnp.exp(student["log_lr"])
      how = dict(unroll=given.unroll, momentum=given.momentum)
      distance = match(gradient, data, lr, steps, start, targets, **how)
      return (distance, jnp.float32(1)), dict(lr=(lr, jnp.float32(1)))

    student, opt, metrics = minimize(tx, loss, state["student"], state["opt"], batch, key)
    if given.threshold:
      near = metrics["loss"][0] <= given.threshold
      student, opt = jax.tree.map(
        lambda new, old: jnp.where(near, new, old), (student, opt), (state["student"], state["opt"])
      )
    ema = optim.ema_update(config.ema, state["ema"], student, state["step"])
    return dict(step=state["step"] + 1, student=student, opt=opt, ema=ema), metrics

  return Method(init, step)


def batches(key: jax.Array, images: int, size: int, steps: int) -> dict[str, jax.Array]:
  """Rows [steps, size] of batches that go through the set again and again, each time in a new
  order, and a key for each. What is left of a set that `size` does not divide waits for the next
  order."""
  of_order, of_images = jax.random.split(key)
  size = min(size, images)
  each = images // size
  keys = jax.random.split(of_order, -(-steps // each))
  orders = jax.vmap(lambda key: jax.random.permutation(key, images)[: each * size])(keys)
  return dict(rows=orders.reshape(-1, size)[:steps], key=jax.random.split(of_images, steps))


def last_start(given, step: jax.Array) -> jax.Array:
  """Start epochs are below it: max_start, or on the way there from first_max_start in `growth`
  steps, as in DATM."""
  if not given.growth:
    return jnp.int32(given.max_start)
  more = (given.max_start - given.first_max_start) * step // given.growth
  return jnp.minimum(given.first_max_start + more, given.max_start)


def sampled(trajectory: Tree, last: int) -> Tree:
  """The epochs [0, last] of a trajectory, all that can be drawn."""
  epochs = len(jax.tree.leaves(trajectory)[0]) - 1
  if last > epochs:
    raise ConfigError(
      f"method.max_start + method.expert_epochs is {last}, more than the experts' {epochs} epochs."
    )
  return jax.tree.map(lambda x: jnp.asarray(x[: last + 1]), trajectory)


def logits_of(config, experts: Tree, x: jax.Array) -> jax.Array:
  """[experts, N, classes] of images [N, H, W, C]."""
  arch = config.models.student
  model = method_lib.load("models", arch.name)
  one = lambda params, x: model.apply(arch, params, x[None])[0][0]  # noqa: E731
  return jax.lax.map(
    lambda params: jax.lax.map(lambda x: one(params, x), x, batch_size=CHUNK), experts
  )


def known(key: jax.Array, logits: jax.Array, real, n: int) -> tuple[jax.Array, jax.Array]:
  """n images of each class that the experts know, and labels for them: DATM's start.

  Images of which more experts are right come first, in random order among equals. (The authors take
  those that one expert, drawn at random, has right.)

  Args:
    key: randomness.
    logits: [experts, N, classes].
    real: the training set.
    n: of each class.

  Returns:
    Rows [classes n], class after class, and the mean logits [classes n, classes] of the experts
    that are right about the image; of all, where none is.
  """
  right = (jnp.argmax(logits, axis=-1) == real.label).astype(logits.dtype)  # [experts, N]
  share = jnp.mean(right, axis=0)
  chance = jax.random.uniform(key, share.shape) / (2 * len(logits))  # less than one expert

  def of_class(c):
    return jax.lax.top_k(jnp.where(real.label == c, share + chance, -1.0), n)[1]

  rows = jnp.concatenate([of_class(c) for c in range(len(real.first))])
  weight = jnp.where(share > 0, right, 1.0)[:, rows]
  return rows, jnp.einsum("ei,eic->ic", weight, logits[:, rows]) / jnp.sum(weight, axis=0)[:, None]


def representative(key: jax.Array, logits: jax.Array, real, n: int) -> jax.Array:
  """AST's start: rows of n images of each class, whose logits [N, classes] are nearest to means of
  clusters."""
  choose = lambda inside, key: coresets.k_means(logits, n, key=key, where=inside)  # noqa: E731
  return rows_of_each_class(real, choose, key)


def perturbed(key: jax.Array, params: Tree, alpha: float) -> Tree:
  """w + alpha d w with d normal and of length 1, for the kernels of convolutions: AST."""
  keys = iter(jax.random.split(key, len(jax.tree.leaves(params))))

  def of(w):
    d = jax.random.normal(next(keys), w.shape)
    return w + alpha * d / jnp.linalg.norm(d) * w if w.ndim == 4 else w

  return jax.tree.map(of, params)


def balance(epoch: jax.Array, max_start: int) -> jax.Array:
  """AST's factor of the inner loss: log_5(8 + e) of an epoch e past the middle of the start epochs,
  1 / log_5(8 + e) of one e before it."""
  past = epoch - max_start // 2
  factor = jnp.log(8.0 + jnp.abs(past)) / jnp.log(5.0)
  return jnp.where(past >= 0, factor, 1 / factor)
