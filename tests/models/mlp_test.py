"""The residual perceptron against its formula, and its derivative along time."""

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion import network
from distill_jax.models import embedding, mlp


def config(**changes):
  given = network.default_config()
  given.update(dict(width=8, depth=3, num_classes=2, conditions=("label",), **changes))
  return given


def silu(x):
  return x / (1 + np.exp(-x))


def test_forward_is_the_formula():
  with jax.enable_x64(True):
    given = config()
    params = mlp.init(given, (2,), jax.random.key(0))
    x, angle = jax.random.normal(jax.random.key(1), (4, 2)), jnp.linspace(0.1, 1.5, 4)
    condition = {"label": jnp.array([0, 1, 2, 0])}
    f, features = mlp.apply(given, params, x, angle, condition)
    e = np.asarray(embedding.apply(given, params["embed"], angle, condition))
    p = jax.device_get(params)
    h, states = np.asarray(x) @ p["inputs"]["kernel"] + p["inputs"]["bias"] + e, []
    for i in range(3):
      one = jax.tree.map(lambda a: a[i], p["layers"])
      inner = silu(silu(h + e) @ one["first"]["kernel"] + one["first"]["bias"])
      h = h + inner @ one["second"]["kernel"] + one["second"]["bias"]
      states.append(h)
    want = silu(h) @ p["outputs"]["kernel"] + p["outputs"]["bias"]
    np.testing.assert_allclose(f, want, rtol=1e-10)
    np.testing.assert_allclose(features, states[1][:, None], rtol=1e-10)


def test_forward_mode_is_finite_differences():
  with jax.enable_x64(True):
    given = config()
    params = mlp.init(given, (2,), jax.random.key(0))
    x, angle = jax.random.normal(jax.random.key(1), (4, 2)), jnp.linspace(0.1, 1.5, 4)

    def apply(x, angle):
      return mlp.apply(given, params, x, angle, {})[0]

    _, tangent = jax.jvp(apply, (x, angle), (x, jnp.ones(4)))
    step = 1e-6
    differences = apply(x * (1 + step), angle + step) - apply(x * (1 - step), angle - step)
    np.testing.assert_allclose(tangent, differences / (2 * step), rtol=1e-5, atol=1e-7)
