"""Supervised training of a classifier: its first update by hand; export and what reads it back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import export, train
from distill_jax.data import images
from distill_jax.evals import measures
from distill_jax.methods.classifier import supervised
from distill_jax.models import convnet

SGD = ("optim.name=sgd", "optim.lr=0.1", "optim.schedule=constant", "optim.b1=0.0")
PATH = "experiments/classifier/supervised.py:smoke"


def test_an_update_is_the_gradient_of_the_mean_cross_entropy():
  more = ("optim.warmup=0", "optim.weight_decay=0.0", "optim.clip_norm=0.0")
  config = config_lib.load(PATH, (*SGD, *more))
  method, given = supervised.make(config), config.models.student
  state, frozen = method.init(jax.random.key(0), {})
  batch = {k: v[:16] for k, v in images.load("digits", "train")._asdict().items()}

  def loss(params):
    logits, _ = convnet.apply(given, params, batch["x"])
    log_probs = logits - jax.scipy.special.logsumexp(logits, axis=1, keepdims=True)
    return -jnp.mean(log_probs[jnp.arange(16), batch["label"]])

  value, grads = jax.value_and_grad(loss)(state["student"])
  new, metrics = jax.jit(method.step)(state, frozen, batch, jax.random.key(1))
  want = jax.tree.map(lambda x, g: x - 0.1 * g, state["student"], grads)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new["student"], want)
  assert float(metrics["loss"][0] / metrics["loss"][1]) == pytest.approx(float(value), rel=1e-5)
  right = jnp.argmax(convnet.apply(given, state["student"], batch["x"])[0], 1) == batch["label"]
  assert tuple(map(float, metrics["accuracy"])) == (float(jnp.sum(right)), 16)


@pytest.mark.parametrize("seeds", [1, 2])
def test_an_exported_classifier_is_the_one_that_was_trained(tmp_path, seeds):
  config = config_lib.load(PATH, (f"seeds={seeds}",))
  results = train.run(config, tmp_path / "run")
  name = "classification/accuracy" + ("@0" if seeds > 1 else "")
  out = tmp_path / "model"
  assert export.export(tmp_path / "run", out, tree="ema.constant_0.99", dtype="float32") == 2
  assert json.loads((out / "config.json").read_text())["name"] == "convnet"
  held = images.validation(config, config.eval_samples)
  logits, _ = measures.classifier(str(out), config.data.shape)(held["x"])
  assert np.mean(np.argmax(logits, 1) == held["label"]) == pytest.approx(results[name])


def test_the_shipped_classifier_knows_its_digits():
  held = images.load("digits", "test")
  logits, features = measures.classifier("distill_jax/assets/digits_classifier", (8, 8, 1))(held.x)
  assert np.mean(np.argmax(logits, 1) == held.label) > 0.99 and features.shape == (359, 128)
