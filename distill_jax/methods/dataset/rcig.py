"""RCIG: the exact gradient of a loss on real images through training a linearised network on the
synthetic ones, by the implicit function theorem.

  inner(S, theta)  the linearised network's fit to S, its last layer solved for, convex in theta
  outer(S, theta)  cross-entropy of its predictions for real images, and the margin of y_s
  gradient         d outer / d S  -  d/dS <v, d inner / d theta>,  v = H^-1 d outer / d theta

A network out of a pool is linearised at its parameters. theta, the tangent of all its parameters
but the matrix of the head, is trained from zero by `method.inner_steps` of Adam, and v found by
`method.hessian_steps` of it. The implicit part is limited to the norm of the direct one. Then the
network itself is trained on S, 1 to `method.pool_steps` steps, and drawn anew after `method.most`.

The authors' code tunes both rates of Adam on the way; here they are fixed, and
`inner` and `residual` of the metrics tell whether they are too large. Theirs also has AdaBelief, an
average of S, mirrored copies of its images, and softplus for ReLU, through whose slope the second
derivatives flow that ReLU lacks.

Paper: Loo, Hasani, Lechner, Rus, Dataset Distillation with Convexified Implicit Gradients
  (arXiv:2302.06755).
"""

import functools

import jax
import jax.numpy as jnp
import optax

from distill_jax import method as method_lib
from distill_jax import optim
from distill_jax.distilled import pool as pool_lib
from distill_jax.distilled import protocol, synthetic
from distill_jax.distilled import real as real_lib
from distill_jax.losses import implicit, kernels
from distill_jax.method import Method, minimize
from distill_jax.methods.dataset import frepo


def make(config) -> Method:
  given, shape, wanted = config.models.student, tuple(config.data.shape), config.method
  classes = given.num_classes
  model = method_lib.load("models", given.name)
  adam = optax.adam(wanted.network_lr)
  warmer = optax.masked(
    optax.scale(wanted.temperature_rate), dict(images=False, labels=False, log_temperature=True)
  )
  tx = optax.chain(optim.make(config.optim, config.steps), warmer)
  draw = pool_lib.drawing(lambda key: model.init(given, shape, key), adam)
  ridge = wanted.ridge * classes * config.per_class

  def inner(params, data, theta):
    features, outputs = linearized(given, params, theta, data["images"])
    square = implicit.inner_product(theta, theta)
    return kernels.rcig_inner(features, outputs, data["labels"], square, ridge=ridge)

  def outer(params, x, y_t, learned, theta):
    features_s, outputs_s = linearized(given, params, theta, learned["images"])
    features_t, outputs_t = linearized(given, params, theta, x)
    predicted = kernels.rcig_outer_prediction(
      features_s, outputs_s, learned["labels"], features_t, outputs_t, ridge=ridge
    )
    loss = kernels.rcig_outer(predicted, y_t, learned["log_temperature"])
    return loss + kernels.label_margin(learned["labels"], most=1 / (2 * classes))

  def init(key, pretrained):
    of_images, of_pool = jax.random.split(key)
    real = pretrained["real"]
    student = dict(
      images=synthetic.start(config, of_images, real),
      labels=frepo.labels(classes, config.per_class),
    )
    learned = dict(student, log_temperature=jnp.float32(0))
    pool = pool_lib.start(draw, of_pool, wanted.pool)
    state = dict(step=jnp.int32(0), student=student, opt=tx.init(learned), pool=pool)
    return dict(state, log_temperature=learned["log_temperature"]), dict(real=real)

  def step(state, frozen, batch, key):
    of_network, of_images, of_draw, of_steps = jax.random.split(key, 4)
    i = jax.random.randint(of_network, (), 0, wanted.pool)
    params = pool_lib.take(state["pool"], i)["params"]
    x, label = real_lib.at_random(of_images, frozen["real"], wanted.targets)
    y_t = synthetic.regression_targets(label, classes)
    student = state["student"]
    learned = dict(student, log_temperature=state["log_temperature"])

    theta, fitted = trained(
      functools.partial(inner, params, student),
      tangent(params),
      wanted.inner_steps,
      wanted.inner_lr,
    )
    value, gradient, residual = implicit_gradient(
      functools.partial(outer, params, x, y_t),
      functools.partial(inner, params),
      learned,
      theta,
      steps=wanted.hessian_steps,
      learning_rate=wanted.hessian_lr,
    )

    def loss(learned, batch, key):
      """Its gradient is `gradient`."""
      slope = implicit.inner_product(gradient, learned)
      return (value + slope - jax.lax.stop_gradient(slope), jnp.float32(1)), {}

    learned, opt, metrics = minimize(tx, loss, learned, state["opt"], batch, key)
    metrics |= dict(inner=(fitted, jnp.float32(1)), residual=(residual, jnp.float32(1)))
    log_temperature = learned.pop("log_temperature")

    def squares(params):
      logits, _ = model.apply(given, params, learned["images"])
      return jnp.mean(protocol.loss_of("regression", logits, learned["labels"]))

    steps = jax.random.randint(of_steps, (), 1, wanted.pool_steps + 1)
    pool = pool_lib.update(
      state["pool"], i, squares, adam, draw, of_draw, most=wanted.most, steps=steps
    )
    state = dict(step=state["step"] + 1, student=learned, opt=opt, pool=pool)
    return dict(state, log_temperature=log_temperature), metrics

  return Method(init, step)


def tangent(params):
  """Zeros for all parameters but the head's kernel, which is solved for."""
  zeros = jax.tree.map(jnp.zeros_like, params)
  return dict(zeros, head=dict(bias=zeros["head"]["bias"]))


def linearized(given, params, theta, x):
  """Features at `params` [N, D], and the change of the outputs in the direction theta [N, C]."""
  model = method_lib.load("models", given.name)
  kernel = jnp.zeros_like(params["head"]["kernel"])
  direction = dict(theta, head=dict(theta["head"], kernel=kernel))
  both = lambda params: model.apply(given, params, x)  # noqa: E731
  (_, features), (change, _) = jax.jvp(both, (params,), (direction,))
  return features, change


def trained(inner, theta, steps, rate):
  """theta after steps of Adam on inner(theta), and the loss before the last of them."""
  adam = optax.adam(rate)

  def descend(carry, _):
    theta, opt = carry
    value, gradient = jax.value_and_grad(inner)(theta)
    updates, opt = adam.update(gradient, opt)
    return (optax.apply_updates(theta, updates), opt), value

  (theta, _), values = jax.lax.scan(descend, (theta, adam.init(theta)), length=steps)
  return theta, values[-1]


def implicit_gradient(outer, inner, learned, theta, *, steps, learning_rate):
  """outer, its gradient with respect to what is learned, through theta as well, and the last
  residual of the product with the inverse Hessian: below 0 and falling with good rates."""
  value, (direct, g) = jax.value_and_grad(outer, argnums=(0, 1))(learned, theta)
  v, residuals = implicit.inverse_hessian_product(
    functools.partial(inner, learned), theta, g, steps=steps, learning_rate=learning_rate
  )
  through = implicit.implicit_gradient(inner, learned, theta, v)
  through = implicit.limit_norms(through, direct)
  return value, jax.tree.map(jnp.add, direct, through), residuals[-1]
