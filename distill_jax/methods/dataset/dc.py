"""DC, and DSA with an augmentation: synthetic images whose gradients are those of real images.

  loss = sum over classes c of D(grad_w CE(A(S_c)), grad_w CE(A(R_c)))

D adds up 1 - cosine over the outputs of every layer. The network w is trained on the synthetic
images meanwhile, `inner` epochs after each update of the images, and drawn anew after `outer`
updates. The augmentation A, with the same parameters on both sides, makes it DSA.

One step here is one update of the images: the authors' iteration is `outer` of them.

Paper: Zhao, Mopuri, Bilen, Dataset Condensation with Gradient Matching (arXiv:2006.05929),
  algorithm 1.
Paper: Zhao, Bilen, Dataset Condensation with Differentiable Siamese Augmentation
  (arXiv:2102.08259), eq. 3.
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
  given, shape = config.models.student, tuple(config.data.shape)
  classes, outer = given.num_classes, config.method.outer
  model = method_lib.load("models", given.name)
  tx = optim.make(config.optim, config.steps)
  of_network = optax.sgd(config.method.network_lr, momentum=0.5)

  def draw(key):
    params = model.init(given, shape, key)
    return dict(params=params, opt=of_network.init(params))

  def cross_entropy(params, x, label):
    logits, _ = model.apply(given, params, x)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))

  def by_class(x):
    return x.reshape(classes, -1, *shape)

  def init(key, pretrained):
    real = pretrained["real"]
    student = dict(images=synthetic.start(config, key, real))
    state = dict(step=jnp.int32(0), student=student, opt=tx.init(student), network=draw(key))
    return state, dict(real=real)

  def step(state, frozen, batch, key):
    of_draw, of_images, of_augment, of_order = jax.random.split(key, 4)
    network = jax.lax.cond(
      state["step"] % outer == 0, lambda: draw(of_draw), lambda: state["network"]
    )
    x, _ = real_lib.of_classes(of_images, frozen["real"], config.real_per_class)

    def distance(real, images, c):
      """Of one class, in memory that is then free for the next."""
      key = jax.random.fold_in(of_augment, c)
      label = lambda x: jnp.full(len(x), c)  # noqa: E731
      gradient = lambda x: jax.grad(cross_entropy)(  # noqa: E731
        network["params"], siamese.shared(key, x, config.augment), label(x)
      )
      return matching.layerwise_cosine(gradient(images), gradient(real))

    def loss(student, batch, key):
      parts = by_class(x), by_class(student["images"]), jnp.arange(classes)
      distances = jax.lax.map(lambda part: jax.checkpoint(distance)(*part), parts)
      return (jnp.sum(distances), jnp.float32(1)), {}

    student, opt, metrics = minimize(tx, loss, state["student"], state["opt"], batch, key)
    network = train(network, student["images"], of_order)
    return dict(step=state["step"] + 1, student=student, opt=opt, network=network), metrics

  def train(network, images, key):
    """`inner` epochs on the synthetic images, in batches of equal size of at most 256."""
    label = synthetic.hard_labels(classes, config.per_class)
    batches = -(-len(images) // 256)
    size = len(images) // batches

    def update(network, t):
      order = jax.random.permutation(jax.random.fold_in(key, t // batches), len(images))
      rows = order[: size * batches].reshape(batches, size)[t % batches]
      x = siamese.shared(jax.random.fold_in(key, t), images[rows], config.augment)
      gradient = jax.grad(cross_entropy)(network["params"], x, label[rows])
      updates, opt = of_network.update(gradient, network["opt"])
      return dict(params=optax.apply_updates(network["params"], updates), opt=opt), None

    updates = jnp.arange(config.method.inner * batches)
    return jax.lax.scan(update, network, updates)[0]

  return Method(init, step)
