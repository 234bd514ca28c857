"""A discriminator's head: 0 at birth, blind to the scale of features and the order of places."""

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.models import heads

FEATURES = jax.random.normal(jax.random.key(1), (3, 4, 6))


def test_every_logit_begins_at_0_and_the_last_matrix_has_a_gradient():
  params = heads.init(jax.random.key(0), 6, width=8)
  np.testing.assert_array_equal(heads.apply(params, FEATURES), jnp.zeros(3))
  grads = jax.grad(lambda p: jnp.sum(heads.apply(p, FEATURES)))(params)
  assert float(jnp.abs(grads["last"]["kernel"]).max()) > 0.1


def test_scale_and_places():
  params = heads.init(jax.random.key(0), 6, width=8)
  params["last"]["kernel"] = jax.random.normal(jax.random.key(2), (8, 1))
  logits = heads.apply(params, FEATURES)
  assert logits.shape == (3,)
  np.testing.assert_allclose(heads.apply(params, 50 * FEATURES[:, ::-1]), logits, rtol=1e-4)
  by_place = jnp.stack([heads.apply(params, FEATURES[:, i : i + 1]) for i in range(4)])
  np.testing.assert_allclose(logits, by_place.mean(0), rtol=1e-4)
  zeros = heads.apply(params, jnp.zeros((1, 4, 6)))  # no features at all: a number all the same
  assert np.isfinite(zeros).all()
