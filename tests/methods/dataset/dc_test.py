"""DC: its loss against cosines in NumPy, and when its network is drawn anew."""

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import config as config_lib
from distill_jax.data import image_set
from distill_jax.distilled import real as real_lib
from distill_jax.methods.dataset import dc
from distill_jax.models import convnet


def made(*overrides):
  config = config_lib.load(
    "experiments/dataset/dc.py:smoke", ("models.student.depth=1", "method.inner=2", *overrides)
  )
  method = dc.make(config)
  state, frozen = method.init(jax.random.key(0), dict(real=image_set.whole(config)))
  return config, method, state, frozen


def test_the_loss_is_the_cosine_distance_of_every_output_of_every_class():
  config, method, state, frozen = made("method.outer=5")
  state = dict(state, step=jnp.int32(1))  # the network stays
  key = jax.random.key(3)
  _, metrics = jax.jit(method.step)(state, frozen, {}, key)
  given, params = config.models.student, state["network"]["params"]
  x, _ = real_lib.of_classes(jax.random.split(key, 4)[1], frozen["real"], config.real_per_class)

  def gradient(x, c):
    def loss(params):
      return -jnp.mean(jax.nn.log_softmax(convnet.apply(given, params, x)[0])[:, c])

    return [g for g in jax.tree.leaves(jax.grad(loss)(params)) if g.ndim > 1]

  want = 0.0
  for c in range(10):
    n = config.real_per_class
    pairs = zip(
      gradient(state["student"]["images"][c : c + 1], c),
      gradient(x[c * n : (c + 1) * n], c),
      strict=True,
    )
    for s, r in pairs:
      s, r = (np.asarray(g, np.float64).reshape(-1, g.shape[-1]) for g in (s, r))
      norms = np.linalg.norm(s, axis=0) * np.linalg.norm(r, axis=0)
      want += np.sum(1 - np.sum(s * r, axis=0) / (norms + 1e-6))
  np.testing.assert_allclose(metrics["loss"][0], want, rtol=1e-3)


def test_a_new_network_comes_after_outer_updates():
  _, method, state, frozen = made("method.outer=2")
  step = jax.jit(method.step)
  moved = []
  for t in range(4):
    before = state["network"]["params"]["head"]["kernel"]
    state, _ = step(state, frozen, {}, jax.random.key(t))
    moved.append(float(jnp.max(jnp.abs(state["network"]["params"]["head"]["kernel"] - before))))
  assert min(moved[0], moved[2]) > 3 * max(moved[1], moved[3]) > 0
