"""Samples: each way of drawing them, and what is measured of perfect, shuffled and empty ones."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax.config import ConfigError
from distill_jax.data import images, points
from distill_jax.diffusion import network as network_lib
from distill_jax.evals import distances, measures, samples
from distill_jax.models import pretrained

MIXTURE, DIGITS = "experiments/diffusion/denoising.py:smoke", "data=digits,smoke"


def test_exact_points_are_measured_as_such_and_collapsed_ones_as_not():
  config = config_lib.load(MIXTURE)
  real, other = points.validation(config, 1000), points._draw("mixture25", 7, 1000)
  measure = measures.on_mixture(config)
  values = measure(dict(real, label=other["label"]), other["x"])
  assert values["modes"] == 25 and values["precision"] > 0.97 and values["right_class"] > 0.99
  assert values["energy"] < 0.01 and values["sliced_w2"] < 0.2 and abs(values["nll_gap"]) < 0.1
  collapsed = measure(real, jnp.tile(other["x"][:1], (1000, 1)))
  assert collapsed["modes"] == 1 and collapsed["mode_kl"] == pytest.approx(np.log(25), abs=0.1)
  assert collapsed["energy"] > 0.5


def test_images_are_measured_by_a_classifier():
  config = config_lib.load(f"experiments/diffusion/denoising.py:{DIGITS}")
  real, measure = images.validation(config, 128), measures.on_images(config)
  same = measure(real, real["x"])
  assert same["class_accuracy"] > 0.98 and abs(same["feature_fid"]) < 1e-3
  assert same["precision"] == same["recall"] == same["coverage"] == 1
  assert same["feature_kid"] < 0  # unbiased: of a set with itself it is below 0
  noise = measure(real, np.random.default_rng(0).normal(size=real["x"].shape).astype("f4"))
  assert noise["class_accuracy"] < 0.4 and noise["coverage"] < 0.3 and noise["feature_fid"] > 5
  shuffled = measure(dict(real, label=np.roll(real["label"], 1)), real["x"])
  assert shuffled["class_accuracy"] < 0.4 and shuffled["coverage"] == 1


def test_without_a_classifier_or_without_classes():
  config = config_lib.load(f"experiments/diffusion/denoising.py:{DIGITS}")
  real = images.validation(config, 16)
  config.models.student.num_classes = 0
  assert "class_accuracy" not in measures.on_images(config)(real, real["x"])
  config.features = ""
  assert measures.on_images(config)(real, real["x"]) == {"pixel_energy": 0}


def test_what_is_no_classifier_of_these_images_is_refused(tmp_path):
  with pytest.raises(ConfigError, match="no classifier of images of shape"):
    measures.classifier("distill_jax/assets/digits_classifier", (28, 28, 1))
  with pytest.raises(ConfigError, match="holds no classifier"):
    measures.classifier("distill_jax/assets/stdlib_student", (8, 8, 1))
  with pytest.raises(ConfigError, match="No model at"):
    measures.classifier(str(tmp_path), (8, 8, 1))


@pytest.mark.parametrize(
  "name, energy", [("heun", 0.02), ("few_step", 0.6), ("flow_map", None), ("heunn", None)]
)
def test_samplers_draw_the_mixture_from_the_shipped_network(name, energy):
  """One denoising step gives class means, Heun's the distribution."""
  config = config_lib.load("experiments/diffusion/denoising.py", (f"sampler.name={name}",))
  config.eval_samples = 512
  label = points.validation(config, 512)["label"]
  if name == "heunn":
    with pytest.raises(ConfigError, match=r"sampler\.name: no 'heunn'"):
      samples.sample(config, {}, label)
    return
  if name == "flow_map":
    config.models.student.conditions = ("label", "second")
  start = pretrained.load("distill_jax/assets/mixture25_denoiser")
  params = network_lib.params(config, "student", jax.random.key(0), dict(start=start))
  made = samples.sample(config, params, label)
  assert made.shape == (512, 2) and np.isfinite(made).all()
  if energy:
    values = measures.on_mixture(config)(points.validation(config, 512), made)
    assert values["energy"] < energy and values["right_class"] > 0.95, json.dumps(values)


@pytest.mark.parametrize("name, states", [("heun", 4), ("few_step", 2), ("particles", 1)])
def test_a_trajectory_is_scaled_to_the_data_and_ends_with_the_samples(name, states):
  given = (f"sampler.name={name}", "sampler.steps=3")
  config = config_lib.load(MIXTURE, given)
  label = points.validation(config, 6)["label"]
  params = network_lib.params(config, "student", jax.random.key(0), {})
  params = jnp.ones((9, 2)) if name == "particles" else params
  way = samples.trajectory(config, params, label)
  assert way.states.shape == (states, 6, 2) and way.sigmas.shape == (states,)
  made = samples.sample(config, params, label)
  np.testing.assert_allclose(way.states[-1], made, rtol=1e-5)
  assert way.sigmas[-1] == 0
  if states > 1:
    data = config.models.student.sigma_data
    noise = jax.random.normal(jax.random.key(1), (6, 2))
    np.testing.assert_allclose(way.states[0], noise * 20 / (1 + (20 / data) ** 2) ** 0.5, rtol=1e-5)


def test_inception_fid_is_the_distance_of_its_features(monkeypatch):
  """With pixels for features; those of the real images are read once."""
  config = config_lib.load(f"experiments/diffusion/denoising.py:{DIGITS}")
  config.inception, config.features = "weights.safetensors", ""
  monkeypatch.setattr(measures.inception, "load", lambda path: dict(scale=2.0))
  monkeypatch.setattr(
    measures.inception, "features", lambda params, x: params["scale"] * x.reshape(len(x), -1)
  )
  rng = np.random.default_rng(0)
  images_of = lambda n: rng.integers(0, 256, (n, 8, 8, 1)).astype("f4") / 127.5 - 1  # noqa: E731
  real, made = dict(x=images_of(100), label=np.zeros(100)), images_of(70)  # more than a chunk
  measure = measures.on_images(config)
  both = [distances.moments(2 * x.reshape(len(x), -1)) for x in (made, real["x"])]
  wanted = distances.frechet_distance(*both[0], *both[1])
  off = made + 0.9 / 255 * rng.choice([-1, 1], made.shape)  # less than half of an 8-bit level
  for x in (made, off):
    assert measure(real, x)["inception_fid"] == pytest.approx(float(wanted), rel=1e-4)
  assert abs(measure(real, real["x"])["inception_fid"]) < 1e-3
  kept = real["x"].copy()
  real["x"][:] = 0
  assert measure(real, made)["inception_fid"] == pytest.approx(float(wanted), rel=1e-4)
  assert measure(dict(real, x=0 * kept), made)["inception_fid"] > 1.05 * wanted


def test_a_path_without_inception_is_one_line():
  config = config_lib.load(f"experiments/diffusion/denoising.py:{DIGITS}", ("inception=none",))
  with pytest.raises(ConfigError, match=r"inception: no file 'none': convert"):
    measures.on_images(config)
