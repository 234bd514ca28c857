"""Expert training: an epoch by hand, what GSAM, early factors and the penalty change, and rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax.distilled import experts as experts_lib
from distill_jax.evals import experts as experts_eval
from distill_jax.methods.dataset import experts
from distill_jax.models import convnet

PATH = "experiments/dataset/experts.py:smoke"
WHOLE = ("method.experts.batch_size=2000", "augment=()", "models.student.width=4")


def loaded(*overrides, arg=""):
  config = config_lib.load(PATH + arg, (*WHOLE, *overrides))
  real = method_lib.load("data", "image_set").whole(config)
  return config, jax.tree.map(jnp.asarray, real)


def nats(config, params, x, label):
  logits = convnet.apply(config.models.student, params, x)[0]
  return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(label)), label])


def close(a, b, **tolerance):
  tolerance = dict(rtol=1e-4, atol=1e-6) | tolerance
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_an_epoch_of_one_batch_and_the_rows_that_are_kept():
  config, real = loaded()
  method = experts.make(config)
  state, frozen = jax.jit(method.init)(jax.random.key(0), dict(real=real))
  first = jax.device_get(state)
  state, metrics = jax.jit(method.step)(state, frozen, {}, jax.random.key(1))
  losses = []
  for i in range(2):
    params = jax.tree.map(lambda x, i=i: x[i], first["student"])
    loss, g = jax.value_and_grad(lambda w: nats(config, w, real.x, real.label))(params)
    lr = config.method.experts.lr
    want = jax.tree.map(lambda w, g: w - lr * g, params, g)
    close(jax.tree.map(lambda x, i=i: x[i], state["student"]), want)
    losses.append(loss)
  close(metrics["loss"][0], np.mean(losses))
  assert losses[0] != losses[1]
  close(jax.tree.map(lambda x: x[0], state["trajectory"]), first["student"], atol=0)
  close(jax.tree.map(lambda x: x[1], state["trajectory"]), state["student"], atol=0)
  assert not np.any(state["trajectory"]["head"]["bias"][2])


def direction(config, real, number=0):
  params = convnet.init(config.models.student, (8, 8, 1), jax.random.key(0))
  x, label = real.x[::20], real.label[::20]
  key = jax.random.key(1)
  _, g = experts_lib.gradient_of(config, params, x, label, jnp.int32(number), key)
  return params, g, (x, label)


def test_sharpness_aware_without_alpha_is_the_gradient_nearby():
  config, real = loaded("method.experts.rho=0.1", "method.experts.alpha=0.0")
  params, g, data = direction(config, real)
  here = jax.grad(lambda w: nats(config, w, *data))(params)
  norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(here)))
  worst = jax.tree.map(lambda w, g: w + 0.1 * g / norm, params, here)
  close(g, jax.grad(lambda w: nats(config, w, *data))(worst))


def test_early_epochs_are_slower():
  config, real = loaded("method.experts.early=(0.5, 0.8)")
  params, _, data = direction(config, real)
  here = jax.grad(lambda w: nats(config, w, *data))(params)
  for number, factor in ((0, 0.5), (1, 0.8), (2, 1.0), (9, 1.0)):
    close(direction(config, real, number)[1], jax.tree.map(lambda g, f=factor: f * g, here))


@pytest.mark.slow
def test_the_penalty_holds_the_slope_at_one():
  config, real = loaded("method.experts.penalty=3.0")
  params, g, (x, label) = direction(config, real)

  def loss(w):
    def slope(x):
      return jax.grad(lambda x: jnp.sum(convnet.apply(config.models.student, w, x[None])[0]))(x)

    norms = jax.vmap(lambda x: jnp.linalg.norm(slope(x)))(x)
    return nats(config, w, x, label) + 3.0 * jnp.mean((norms - 1) ** 2)

  close(g, jax.grad(loss)(params), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("variant", ["ftd", "smooth"])
def test_variants_learn(variant):
  config, real = loaded("method.experts.batch_size=256", arg=f",variant={variant}")
  method = experts.make(config)
  state, frozen = jax.jit(method.init)(jax.random.key(0), dict(real=real))
  step = jax.jit(method.step)
  evaluate = experts_eval.make(config)
  losses = []
  for t in range(3):
    state, metrics = step(state, frozen, {}, jax.random.key(t))
    losses.append(float(metrics["loss"][0]))
  assert np.all(np.isfinite(losses))
  found = evaluate(state, frozen)
  assert found["accuracy"] > 0.12 and found["worst"] <= found["accuracy"]
