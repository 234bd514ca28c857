"""IDM: distribution matching with more features of each image, networks that have learned
something, and labels.

  loss = sum over classes of |mean_i f(A(s_i)) - mean_j f(A(r_j))|^2
         + weight a sum over classes of mean_i CE(network(A(s_i)), c)

- Partition and expansion: an image is parts x parts small ones, brought to full size before they
  are used, here and in the eval (`config.parts`).
- f is of a queue of networks. Each step takes one, and trains `trained` of them by `updates` steps
  on real images; every `interval` steps the oldest is replaced by a random one.
- The cross-entropy counts as much as the network is accurate: a is its accuracy in training.

Sizes of the queue and of its training are those of the authors' code. There a queue begins with
three networks and grows; here all begin random. There a is the mean of all training since the last
evaluation, here of the last time the network was trained.

Paper: Zhao, Li, Qin, Yu, Improved Distribution Matching for Dataset Condensation
  (arXiv:2307.09742).
"""

import jax
import jax.numpy as jnp
import optax

from distill_jax import method as method_lib
from distill_jax import optim
from distill_jax.data import siamese
from distill_jax.distilled import real as real_lib
from distill_jax.distilled import synthetic
from distill_jax.losses import matching
from distill_jax.method import Method, minimize


def make(config) -> Method:
  given, shape, ours = config.models.student, tuple(config.data.shape), config.method
  classes, copies = given.num_classes, config.parts**2
  model = method_lib.load("models", given.name)
  tx = optim.make(config.optim, config.steps)
  of_network = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(ours.network_lr, 0.9))
  hard = synthetic.hard_labels(classes, config.per_class * copies)

  def draw(key):
    params = model.init(given, shape, key)
    return dict(params=params, opt=of_network.init(params), accuracy=jnp.float32(0))

  def start(key, real):
    if config.start != "real":
      return synthetic.start(config, key, real)
    x, _ = real_lib.of_classes(key, real, config.per_class * copies)
    return synthetic.joined(x, config.parts)

  def init(key, pretrained):
    of_images, key = jax.random.split(key)
    student = dict(images=start(of_images, pretrained["real"]))
    queue = jax.lax.map(draw, jax.random.split(key, ours.queue))
    state = dict(step=jnp.int32(0), student=student, opt=tx.init(student), queue=queue)
    return state, dict(real=pretrained["real"])

  def step(state, frozen, batch, key):
    of_draw, of_choice, of_images, of_augment, of_training = jax.random.split(key, 5)
    queue, real = state["queue"], frozen["real"]
    oldest = state["step"] // ours.interval % ours.queue
    due = (state["step"] > 0) & (state["step"] % ours.interval == 0)
    fresh = jax.lax.cond(due, lambda: draw(of_draw), lambda: take(queue, oldest))
    queue = put(queue, oldest, fresh)
    network = take(queue, jax.random.randint(of_choice, (), 0, ours.queue))
    x, label = real_lib.of_classes(of_images, real, config.real_per_class)

    def outputs(x):
      x = siamese.shared(of_augment, x, config.augment)
      return model.apply(given, network["params"], x)

    def loss(student, batch, key):
      logits, features = outputs(synthetic.parted(student["images"], config.parts))
      distances = matching.distribution_matching(
        features,
        outputs(x)[1],
        synthetic_labels=hard,
        real_labels=label,
        num_classes=classes,
      )
      nats = optax.softmax_cross_entropy_with_integer_labels(logits, hard)
      regular = ours.weight * network["accuracy"] * classes * jnp.mean(nats)
      measured = dict(cross_entropy=(jnp.sum(nats), jnp.float32(len(hard))))
      return (jnp.sum(distances) + regular, jnp.float32(1)), measured

    student, opt, metrics = minimize(tx, loss, state["student"], state["opt"], batch, key)
    queue = train(queue, real, of_training)
    return dict(step=state["step"] + 1, student=student, opt=opt, queue=queue), metrics

  def train(queue, real, key):
    """The queue after `trained` different networks had `updates` steps each on real images."""

    def update(network, key):
      x, label = real_lib.at_random(key, real, ours.batch_size)

      def loss(params):
        logits, _ = model.apply(given, params, x)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        return jnp.mean(nats), jnp.mean(jnp.argmax(logits, axis=-1) == label)

      gradient, accuracy = jax.grad(loss, has_aux=True)(network["params"])
      updates, opt = of_network.update(gradient, network["opt"], network["params"])
      params = optax.apply_updates(network["params"], updates)
      return dict(params=params, opt=opt, accuracy=network["accuracy"]), accuracy

    def one(queue, given):
      i, key = given
      keys = jax.random.split(key, ours.updates)
      network, accuracies = jax.lax.scan(update, take(queue, i), keys)
      return put(queue, i, dict(network, accuracy=jnp.mean(accuracies))), None

    of_choice, key = jax.random.split(key)
    chosen = jax.random.permutation(of_choice, ours.queue)[: ours.trained]
    return jax.lax.scan(one, queue, (chosen, jax.random.split(key, ours.trained)))[0]

  return Method(init, step)


def take(queue, i):
  """Network i."""
  return jax.tree.map(lambda x: x[i], queue)


def put(queue, i, network):
  """The queue with another network i."""
  return jax.tree.map(lambda all, one: all.at[i].set(one), queue, network)
