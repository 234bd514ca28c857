"""Time and conditions: what is not given, what begins at 0, and that time has a derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion import network
from distill_jax.models import embedding

ALL = ("label", "guidance", "second", "vector")
ANGLE = jnp.array([0.0, 0.3, jnp.pi / 2])


def config(conditions=(), **changes):
  given = network.default_config()
  given.update(dict(width=8, num_classes=3, vector_width=5, conditions=conditions, **changes))
  return given


def shaken(params):
  """Parameters none of which is 0."""
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(9), len(leaves))
  return tree.unflatten(
    [x + 0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
  )


@pytest.mark.parametrize(
  "name, default",
  [
    ("label", jnp.full(3, 3)),
    ("guidance", jnp.ones(3)),
    ("second", ANGLE),
    ("vector", jnp.zeros((3, 5))),
  ],
)
def test_what_is_not_given_has_its_default_and_what_is_given_counts(name, default):
  given = config((name,))
  params = shaken(embedding.init(given, jax.random.key(0)))
  absent = embedding.apply(given, params, ANGLE, {})
  assert absent.shape == (3, 8)
  np.testing.assert_array_equal(absent, embedding.apply(given, params, ANGLE, {name: default}))
  other = embedding.apply(
    given, params, ANGLE, {name: default + 0.5 if name != "label" else default - 1}
  )
  assert float(jnp.min(jnp.abs(other - absent).max(1))) > 1e-3


def test_a_network_told_of_more_is_what_it_was():
  before = config(("label",))
  params = embedding.init(before, jax.random.key(0))
  after = config(ALL)
  more = network.graft(embedding.init(after, jax.random.key(1)), params)
  label = jnp.array([0, 1, 3])
  told = dict(label=label, guidance=2 + ANGLE, second=ANGLE / 2, vector=jnp.ones((3, 5)))
  np.testing.assert_array_equal(
    embedding.apply(after, more, ANGLE, told),
    embedding.apply(before, params, ANGLE, dict(label=label)),
  )


def test_conditions_that_the_network_does_not_hear_of_change_nothing():
  params = embedding.init(config(), jax.random.key(0))
  told = dict(label=jnp.array([0, 1, 2]), second=ANGLE / 2)
  got = embedding.apply(config(), params, ANGLE, told)
  np.testing.assert_array_equal(got, embedding.apply(config(), params, ANGLE, {}))


def test_the_derivative_in_time_is_that_of_differences_and_small():
  with jax.enable_x64(True):
    given, angle = config(("second",)), jnp.linspace(0.0, jnp.pi / 2, 9)
    params = shaken(embedding.init(given, jax.random.key(0)))

    def apply(angle):
      return embedding.apply(given, params, angle, {"second": angle / 3})

    _, tangent = jax.jvp(apply, (angle,), (jnp.ones_like(angle),))
    differences = (apply(angle + 1e-6) - apply(angle - 1e-6)) / 2e-6
    np.testing.assert_allclose(tangent, differences, rtol=1e-5, atol=1e-6)
    assert float(jnp.sqrt(jnp.mean(tangent**2))) < 60


def test_a_condition_that_is_none_is_refused():
  with pytest.raises(ValueError, match=r"conditions: no \['text'\], only label"):
    embedding.init(config(("label", "text")), jax.random.key(0))
