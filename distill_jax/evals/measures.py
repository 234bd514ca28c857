"""What generated points and images are measured by. Each of these makes `measure(real, made)`, with
real the held-out batch and made the samples for its labels, and returns plain numbers.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from distill_jax import method as method_lib
from distill_jax.config import ConfigError
from distill_jax.diffusion import distributions
from distill_jax.evals import distances
from distill_jax.models import inception, pretrained

CHUNK = 256  # images that the classifier sees at a time
INCEPTION_CHUNK = 64  # that Inception does, at 299 x 299
SUBSETS, SUBSET = 20, 1000  # of the kernel distance


def on_mixture(config):
  """Of generated points: their likelihood and modes by the exact density, and how far they are from
  as many points of it.

  nll_gap          E[-log p(x)] - entropy of p, nats: how unlikely they are; 0 at best, and below 0
                   where modes are missing or too narrow
  sliced_w2        root of the mean over directions of the squared 1-D Wasserstein distance
  energy           energy distance
  modes            how many of the modes have at least a fifth of their share of the good points
  mode_kl          KL of the modes' shares of the good points from the true ones, nats
  precision        the share of good points, within three standard deviations of a mode
  right_class      the share of points in a mode of the class that was asked for
  """
  exact = distributions.named(config.data.distribution)

  @jax.jit
  def measure(real, made):
    modes = distances.mode_coverage(made, exact.means, exact.stds)
    true = exact.weights / jnp.sum(exact.weights)
    log_ratio = jnp.log(jnp.where(modes.shares > 0, modes.shares / true, 1))
    owner = jnp.argmax(exact.responsibilities(made), axis=1)
    directions = distances.random_directions(jax.random.key(3), made.shape[1], 64)
    return dict(
      nll_gap=jnp.mean(exact.log_prob(real["x"])) - jnp.mean(exact.log_prob(made)),
      sliced_w2=distances.sliced_wasserstein(made, real["x"], directions),
      energy=distances.energy_distance(made, real["x"]),
      modes=jnp.sum(modes.shares > 0.2 * true),
      mode_kl=jnp.sum(modes.shares * log_ratio),
      precision=modes.quality,
      right_class=jnp.mean(exact.labels[owner] == real["label"]),
    )

  return lambda real, made: {k: float(v) for k, v in measure(real, made).items()}


def on_images(config):
  """Of generated images: the energy distance of pixels, and with a classifier in `config.features`

  class_accuracy   the share of images that it takes for the class that was asked for
  feature_fid      Frechet distance of its features. Not Inception FID, and comparable with nothing
                   but itself at the same number of images
  feature_kid      kernel distance of its features, unbiased
  precision, recall, coverage   of its features, with 5 neighbours

  The classifier's own accuracy on the held-out images bounds the first, which is absent where the
  student has no classes. With Inception's weights in `config.inception`

  inception_fid    see the function of this name
  """
  features_of = classifier(config.features, config.data.shape) if config.features else None
  fid = inception_fid(config.inception) if config.inception else None
  has_classes = config.models.student.num_classes > 0

  @jax.jit
  def measure(real, made):
    x, y = (a.reshape(len(a), -1) for a in (made, real["x"]))
    values = dict(pixel_energy=distances.energy_distance(x, y))
    if features_of is None:
      return values
    (_, known), (logits, features) = features_of(real["x"]), features_of(made)
    both = (*distances.moments(features), *distances.moments(known))
    near = distances.nearest_neighbours(known, features)
    key = jax.random.key(3)
    if has_classes:
      values["class_accuracy"] = jnp.mean(jnp.argmax(logits, axis=1) == real["label"])
    return values | dict(
      feature_fid=distances.frechet_distance(*both),
      feature_kid=distances.kid(key, features, known, subsets=SUBSETS, size=SUBSET),
      precision=near.precision,
      recall=near.recall,
      coverage=near.coverage,
    )

  def numbers(real, made):
    values = {k: float(v) for k, v in measure(real, made).items()}
    return values | dict(inception_fid=fid(real["x"], made)) if fid else values

  return numbers


def inception_fid(path: str) -> Callable[[Any, jax.Array], float]:
  """FID between real and generated images, both [N, H, W, C]: the Frechet distance of Inception's
  2048 features, from the weights of `inception.load`.

  Images are rounded to 8 bits, as in files. In the evals it is between `eval_samples` generated
  images and as many held-out ones, or all if there are fewer. FID falls with the number of images,
  so it compares with itself at the same number; papers take 50,000 generated images against the
  training set. Fewer than 2048 images make covariances singular, which the distance allows: it
  was within 1e-4 of float64 for features of 256 and 4,096 synthetic images. Features of the real
  images are computed once for as long as they stay the same array.

  Raises:
    ConfigError: see `inception.load`.
  """
  params = inception.load(path)

  @jax.jit
  def moments(params, images):
    as_file = jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5) / 127.5 - 1
    one = lambda image: inception.features(params, image[None])[0]  # noqa: E731
    return distances.moments(jax.lax.map(one, as_file, batch_size=INCEPTION_CHUNK))

  distance = jax.jit(distances.frechet_distance)
  known: dict[str, Any] = dict(images=None, moments=None)

  def measure(real, made):
    if known["images"] is not real:
      known.update(images=real, moments=moments(params, real))
    return float(distance(*moments(params, made), *known["moments"]))

  return measure


def classifier(path: str, shape: tuple[int, ...]):
  """The classifier of a model folder: images [N, H, W, C] -> logits [N, classes], features [N, D].

  Raises:
    ConfigError: there is no such folder, it holds no network with features, or one for images of
      another shape.
  """
  file = pretrained.folder(path) / "config.json"
  given = ConfigDict(json.loads(file.read_text()))
  if "name" not in given or "num_classes" not in given:
    raise ConfigError(f"features: {path!r} holds no classifier.")
  model = method_lib.load("models", given.name)
  params: Any = pretrained.load(path)
  fresh = jax.eval_shape(lambda: model.init(given, tuple(shape), jax.random.key(0)))
  if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, fresh):
    raise ConfigError(f"features: {path!r} is no classifier of images of shape {tuple(shape)}.")

  def one(image):
    logits, features = model.apply(given, params, image[None])
    return logits[0], features[0]

  return lambda x: jax.lax.map(one, x, batch_size=CHUNK)
