"""SRe2L: images that have the statistics cost nothing there; blocks; teachers that are read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax.data import image_set
from distill_jax.distilled import squeeze
from distill_jax.methods.dataset import sre2l
from distill_jax.models import resnet


def config(*overrides, variant="sre2l"):
  spec = f"experiments/dataset/sre2l.py:smoke,ipc=2,variant={variant}"
  return config_lib.load(spec, overrides)


def test_batch_norms_cost_nothing_for_the_images_they_have_seen():
  given = resnet.default_config()
  given.update(dict(widths=(4, 6), blocks=(1, 1), stem="small", num_classes=10))
  x, label = jax.random.normal(jax.random.key(0), (20, 8, 8, 1)), jnp.arange(20) % 10
  params = resnet.init(given, (8, 8, 1), jax.random.key(1))

  def see(params):  # the norms' own input, as later norms read what earlier ones make of it
    leaves = iter(resnet.observe(given, params, x)[2])

    def unit(p):
      met = next(leaves)
      mean, var = met.x.mean((0, 1, 2)), met.x.var((0, 1, 2))
      return dict(p, norm=dict(p["norm"], mean=mean, var=var))

    stem = unit(params["stem"])
    order = ("first", "second", "skip")
    stages = [[{n: unit(b[n]) for n in order if n in b} for b in s] for s in params["stages"]]
    return dict(params, stem=stem, stages=stages)

  for _ in range(8):
    params = see(params)
  free = squeeze.loss(given, params, x, label, r_bn=0.0, first=10.0)
  np.testing.assert_allclose(
    squeeze.loss(given, params, x, label, r_bn=1.0, first=10.0), free, rtol=1e-4
  )
  assert squeeze.loss(given, params, 2 * x, label, r_bn=1.0, first=10.0) > 1 + free


def begin(given):
  method, names = sre2l.make(given), squeeze.names(given)
  read = {n: resnet.init(given.models[n], (8, 8, 1), jax.random.key(3)) for n in names}
  pretrained = dict(read, real=image_set.whole(given))
  state, frozen = jax.jit(method.init)(jax.random.key(0), pretrained)
  return jax.jit(method.step), state, frozen


def test_blocks_are_apart():
  """Images of one block do not feel those of another; every image is in one block."""
  given = config("method.block=5", "method.at_once=2", "method.relabel=False", "optim.name=sgd")
  step, state, frozen = begin(given)
  before = state["student"]["images"]
  after = step(state, frozen, {}, jax.random.key(1))[0]["student"]["images"]
  changed = dict(state, student=dict(images=before.at[0].multiply(0.5)))
  other = step(changed, frozen, {}, jax.random.key(1))[0]["student"]["images"]
  felt = np.abs(other - after).max(axis=(1, 2, 3)) > 1e-7
  assert felt.tolist() == [i in (0, 2, 4, 6, 8) for i in range(20)]
  assert (np.abs(after - before).max(axis=(1, 2, 3)) > 0).all()


@pytest.mark.slow
def test_a_committee_weighs_by_scores_and_labels_with_all():
  given = config("method.scores=(90.0,50.0,50.0)", "method.members=3", variant="cv_dd")
  step, state, frozen = begin(given)
  state, metrics = step(state, frozen, {}, jax.random.key(1))
  images = state["student"]["images"]
  logits = [
    resnet.apply(given.models[n], frozen["teachers"][n], images)[0]
    for n in ("deep", "teacher", "thin")
  ]
  weights = np.exp(np.array([9.0, 5.0, 5.0]))
  expected = sum(w * x for w, x in zip(weights / weights.sum(), logits, strict=True)) / 5
  np.testing.assert_allclose(state["student"]["labels"], expected, rtol=1e-4, atol=1e-5)
  assert np.isfinite(metrics["loss"][0])


@pytest.mark.parametrize("override, message", [
  ("method.block=3", "not in blocks of 3"), ("method.members=2", "there are 1"),
])  # fmt: skip
def test_refusals(override, message):
  with pytest.raises(ValueError, match=message):
    sre2l.make(config(override))
