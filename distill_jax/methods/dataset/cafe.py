"""CAFE: synthetic images whose mean features are those of real ones in every layer of a network
that is trained on them, and tell real images apart.

  loss = sum over layers l, classes c of w_l |mean_i f_l(s_i) - mean_j f_l(r_j)|^2
         + weight sum_j -log softmax_c <f(r_j), mean_i f(s_i)>

f_l is the l-th block's output, f the features before the classifier; w_l is 1 for the last block
and `early` before it. The network is trained on the synthetic images, `inner` updates after each of
theirs. It is drawn anew when its accuracy on the real images of the last `watch` steps has moved by
less than `still`: the paper's dynamic schedule. The other part of that schedule, when to end the
updates of the network, is a constant number here, so that a step is one program.

The code of the authors also aligns the last block before its pooling and, for a second time, flat.

Paper: Wang et al., CAFE: Learning to Condense Dataset by Aligning Features (arXiv:2203.01531),
  section 3.
"""

import jax
import jax.numpy as jnp
import optax

from distill_jax import method as method_lib
from distill_jax import optim
from distill_jax.config import ConfigError
from distill_jax.data import siamese
from distill_jax.distilled import real as real_lib
from distill_jax.distilled import synthetic
from distill_jax.losses import matching
from distill_jax.method import Method, minimize
from distill_jax.models.mlp import affine


def make(config) -> Method:
  given, shape, ours = config.models.student, tuple(config.data.shape), config.method
  classes = given.num_classes
  model = method_lib.load("models", given.name)
  if not hasattr(model, "layers"):
    raise ConfigError(f"models.student: {given.name!r} does not show its layers, convnet does.")
  tx = optim.make(config.optim, config.steps)
  of_network = optax.sgd(ours.network_lr)
  hard = synthetic.hard_labels(classes, config.per_class)

  def draw(key):
    """A network; its accuracies are far apart until they are measured."""
    params = model.init(given, shape, key)
    seen = jnp.linspace(0.0, 1.0, ours.watch)
    return dict(params=params, opt=of_network.init(params), seen=seen)

  def init(key, pretrained):
    of_images, key = jax.random.split(key)
    real = pretrained["real"]
    student = dict(images=synthetic.start(config, of_images, real))
    state = dict(step=jnp.int32(0), student=student, opt=tx.init(student), network=draw(key))
    return state, dict(real=real)

  def step(state, frozen, batch, key):
    of_draw, of_images, of_augment, of_training = jax.random.split(key, 4)
    seen = state["network"]["seen"]
    still = jnp.max(seen) - jnp.min(seen) < ours.still
    network = jax.lax.cond(still, lambda: draw(of_draw), lambda: state["network"])
    x, label = real_lib.of_classes(of_images, frozen["real"], config.real_per_class)
    labels = dict(synthetic_labels=hard, real_labels=label, num_classes=classes)

    def features(x):
      x = siamese.shared(of_augment, x, config.augment)
      return model.layers(given, network["params"], x)

    theirs = features(x)
    last = theirs[-1].reshape(len(x), -1)
    right = jnp.argmax(affine(network["params"]["head"], last), axis=-1) == label

    def loss(student, batch, key):
      mine = features(student["images"])
      distances = [
        jnp.sum(matching.distribution_matching(s, r, **labels))
        for s, r in zip(mine, theirs, strict=True)
      ]
      aligned = ours.early * sum(distances[:-1]) + distances[-1]
      told = matching.discrimination(mine[-1].reshape(len(hard), -1), last, **labels)
      measured = dict(discrimination=(jnp.sum(told), jnp.float32(len(x))))
      return (aligned + ours.weight * jnp.sum(told), jnp.float32(1)), measured

    student, opt, metrics = minimize(tx, loss, state["student"], state["opt"], batch, key)
    network = train(network, student["images"], of_training)
    network["seen"] = jnp.roll(network["seen"], -1).at[-1].set(jnp.mean(right))
    return dict(step=state["step"] + 1, student=student, opt=opt, network=network), metrics

  def train(network, images, key):
    """`inner` updates on all synthetic images."""

    def update(carry, key):
      def loss(params):
        logits, _ = model.apply(given, params, siamese.shared(key, images, config.augment))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, hard))

      params, opt = carry
      updates, opt = of_network.update(jax.grad(loss)(params), opt)
      return (optax.apply_updates(params, updates), opt), None

    carry = network["params"], network["opt"]
    (params, opt), _ = jax.lax.scan(update, carry, jax.random.split(key, ours.inner))
    return dict(network, params=params, opt=opt)

  return Method(init, step)
