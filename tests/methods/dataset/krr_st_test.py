"""KRR-ST: the loss of Barlow Twins, targets without labels, the probe, and digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax import train
from distill_jax.data import image_set
from distill_jax.evals import probe
from distill_jax.methods.dataset import krr_st

PATH = "experiments/dataset/krr_st.py"


def config(*overrides):
  return config_lib.load(f"{PATH}:smoke", overrides)


def test_barlow_twins_by_hand():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 50, 3)).astype(np.float32)
  c = np.corrcoef(a.T, b.T)[:3, 3:]
  off = c - np.diag(np.diag(c))
  want = np.sum((1 - np.diag(c)) ** 2) + 0.005 * np.sum(off**2)
  np.testing.assert_allclose(krr_st.barlow_twins(a, b), want, rtol=1e-4)
  white = np.linalg.qr(a - a.mean(0))[0]  # views alike, outputs that do not correlate
  assert krr_st.barlow_twins(100 * white, 100 * white) < 1e-6


@pytest.mark.slow
def test_no_label_of_a_real_image_is_read():
  given = config()
  method = method_lib.load("methods", given.method.name).make(given)
  real = jax.tree.map(jnp.asarray, image_set.whole(given))
  states = []
  for label in (real.label, 9 - real.label):
    state, frozen = method.init(jax.random.key(0), dict(real=real._replace(label=label)))
    states.append(method.step(state, frozen, {}, jax.random.key(1))[0]["student"])
  jax.tree.map(np.testing.assert_array_equal, *states)


def test_targets_are_the_features_of_a_trained_network_whatever_the_key():
  given = config()
  method = method_lib.load("methods", given.method.name).make(given)
  real = jax.tree.map(jnp.asarray, image_set.whole(given))
  (one, a), (two, b) = (method.init(jax.random.key(i), dict(real=real)) for i in (0, 1))
  np.testing.assert_array_equal(a["targets"], b["targets"])
  assert jnp.any(one["student"]["images"] != two["student"]["images"])
  assert a["targets"].shape == (len(real.x), krr_st.feature_width(given))
  row = jnp.argmin(jnp.sum(jnp.abs(real.x - one["student"]["images"][3]), axis=(1, 2, 3)))
  np.testing.assert_allclose(one["student"]["labels"][3], a["targets"][row], rtol=1e-5)


def test_probe_is_ridge_regression():
  rng = np.random.default_rng(0)
  features, weights = rng.normal(size=(40, 5)), rng.normal(size=(5, 3))
  got = probe.linear_probe(jnp.asarray(features), jnp.asarray(features @ weights))
  np.testing.assert_allclose(got, weights, atol=1e-3)


@pytest.mark.slow
def test_digits(tmp_path):
  results = train.run(config_lib.load(PATH), tmp_path)
  assert np.mean([results[f"probe/accuracy@{i}"] for i in range(3)]) > 0.95
