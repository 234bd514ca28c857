"""MTT and those after it: training on the synthetic images ends where an expert's ended.

  w_0 = expert at epoch t,  w_{k+1} = w_k - a grad CE(A(s), y)(w_k),  k < syn_steps
  loss = |w_N - expert at t + M|^2 / |expert at t - expert at t + M|^2

The learning rate a is learned with the images, as its logarithm: it stays positive, which the
authors' does not have to. `method.lr_lr` is in the authors' units: the first step is as long as
theirs.

How the N steps are differentiated, `method.unroll`:
  full   all of them kept: memory of N steps
  remat  each computed again: N copies of the parameters and one step
  sqrt   blocks of about sqrt(N), and the steps in them, computed again: 2 sqrt(N) copies
  tesla  a second pass in place of backpropagation: memory of one step; what the parameters owe to
         earlier images is left out, so this is another gradient (not for syn_steps = 1)
The first three give the same numbers.

With `soft_labels` and `growth` it is DATM: labels are learned, from the mean logits of the experts
that are right; images begin as real ones that experts know; later epochs are matched only later.

Paper: Cazenavette, Wang, Torralba, Efros, Zhu, Dataset Distillation by Matching Training
  Trajectories (arXiv:2203.11932), algorithm 1.
Paper: Cui, Wang, Si, Hsieh, Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory
  (arXiv:2211.10586), section 3.
Paper: Guo et al., Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching
  (arXiv:2310.05773).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from distill_jax import method as method_lib
from distill_jax import optim
from distill_jax.config import ConfigError
from distill_jax.data import siamese
from distill_jax.distilled import experts as experts_lib
from distill_jax.distilled import protocol, synthetic
from distill_jax.losses import matching
from distill_jax.mesh import split_batch
from distill_jax.method import Method, minimize

Tree = Any
UNROLLS = ("full", "remat", "sqrt", "tesla")
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
      return jnp.mean(protocol.loss_of(kind, model.apply(arch, params, x)[0], labels))

    return jax.grad(loss)(params)

  def init(key, pretrained):
    of_images, of_experts = jax.random.split(key)
    real = pretrained["real"]
    trajectory = pretrained.get("experts")
    if trajectory is None:
      trajectory = experts_lib.train(config, real, of_experts)
    student = dict(log_lr=jnp.log(jnp.float32(given.lr)))
    if given.soft_labels:
      logits = logits_of(config, jax.tree.map(lambda x: x[-1], trajectory), real.x)
      rows, labels = known(of_images, logits, real, config.per_class)
      student.update(images=real.x[rows], labels=labels)
    else:
      student.update(images=synthetic.start(config, of_images, real))
    state = dict(step=jnp.int32(0), student=student, opt=tx.init(student))
    kept = sampled(trajectory, given.max_start + given.expert_epochs)
    return dict(state, ema=optim.ema_init(config.ema, student)), dict(trajectory=kept)

  def step(state, frozen, batch, key):
    of_epoch, of_expert, of_steps = jax.random.split(key, 3)
    trajectory = frozen["trajectory"]
    count = len(jax.tree.leaves(trajectory)[0][0])
    expert = jax.random.randint(of_expert, (), 0, count)
    epoch = jax.random.randint(of_epoch, (), given.min_start, last_start(given, state["step"]))
    start, target = (
      jax.tree.map(lambda x, e=e: x[e, expert], trajectory)
      for e in (epoch, epoch + given.expert_epochs)
    )
    steps = batches(of_steps, len(hard), given.batch_syn or len(hard), given.syn_steps)

    def loss(student, batch, key):
      data = {name: student[name] for name in ("images", "labels") if name in student}
      lr = jnp.exp(student["log_lr"])
      distance = match(gradient, data, lr, steps, start, target, unroll=given.unroll)
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


def match(
  gradient: Callable[[Tree, Tree, Tree], Tree],
  data: Tree,
  lr: jax.Array,
  steps: Tree,
  start: Tree,
  target: Tree,
  *,
  unroll: str,
) -> jax.Array:
  """The trajectory distance of SGD on synthetic data.

  Args:
    gradient: (params, data, step) -> the gradient of a step's loss in params.
    data: what is learned, float leaves.
    lr: scalar, learned too.
    steps: what differs from step to step, leaves [N, ...].
    start, target: the expert's parameters.
    unroll: full | remat | sqrt | tesla, see above.

  Returns:
    Scalar.
  """
  if unroll == "tesla":
    total = gradient_sum(gradient)(data, jax.lax.stop_gradient(lr), start, steps)
    return matching.tesla(total, start, target, lr)

  def update(params, step):
    return descend(params, gradient(params, data, step), lr), None

  match unroll:
    case "full":
      end, _ = jax.lax.scan(update, start, steps)
    case "remat":
      end, _ = jax.lax.scan(jax.checkpoint(update), start, steps)
    case "sqrt":
      end = blocks(jax.checkpoint(update), start, steps)
    case other:
      raise ValueError(f"unroll {other!r}: {', '.join(UNROLLS)}")
  return matching.trajectory_distance(end, start, target)


def blocks(update: Callable, carry: Tree, steps: Tree) -> Tree:
  """The end of a scan over [N, ...] in blocks of about sqrt(N), each a checkpoint."""
  n = len(jax.tree.leaves(steps)[0])
  size = math.isqrt(n)
  whole = n // size * size
  block = jax.checkpoint(lambda carry, part: jax.lax.scan(update, carry, part))
  parts = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), steps)
  carry, _ = jax.lax.scan(block, carry, parts)
  if whole < n:
    carry, _ = block(carry, jax.tree.map(lambda x: x[whole:], steps))
  return carry


def gradient_sum(gradient: Callable[[Tree, Tree, Tree], Tree]) -> Callable:
  """(data, lr, start, steps) -> the sum of the steps' gradients, in constant memory.

  Its derivative in data takes the parameters of every step as constants: the steps are walked a
  second time, and each is differentiated alone.
  """

  def walk(data, lr, start, steps, add, total):
    def step(carry, step):
      params, total = carry
      g, part = add(params, step)
      return (descend(params, g, lr), jax.tree.map(jnp.add, total, part)), None

    return jax.lax.scan(step, (start, total), steps)[0][1]

  @jax.custom_vjp
  def of(data, lr, start, steps):
    zero = jax.tree.map(jnp.zeros_like, start)
    add = lambda params, step: (gradient(params, data, step),) * 2  # noqa: E731
    return walk(data, lr, start, steps, add, zero)

  def forward(*args):
    return of(*args), args

  def backward(args, cotangent):
    data, lr, start, steps = args

    def add(params, step):
      g, pull = jax.vjp(lambda data: gradient(params, data, step), data)
      return g, pull(cotangent)[0]

    zero = jax.tree.map(jnp.zeros_like, data)
    return walk(data, lr, start, steps, add, zero), None, None, None

  of.defvjp(forward, backward)
  return of


def descend(params: Tree, gradient: Tree, lr: jax.Array) -> Tree:
  return jax.tree.map(lambda w, g: w - lr * g, params, gradient)


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
