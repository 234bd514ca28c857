"""Images from a trained network: SRe2L's losses, CDA's curriculum, CV-DD's committee.

Images are [B, H, W, C], inputs of batch norms [B, ..., C]. Results are float32 or float64. Norms
are not squared and have a gradient of 0 at 0.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from distill_jax.losses.denoising import floats
from distill_jax.losses.log_probs import log_softmax


def norm(x: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
  """The Euclidean norm over `axis` (default: all), with a gradient of 0 at 0."""
  square = jnp.sum(jnp.square(x), axis=axis)
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def batch_norm_distance(x: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
  """|mean of x - mean|_2 + |variance of x - variance|_2 of one layer, a scalar.

  Yin et al., Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion
  (arXiv:1912.08795); Yin, Xing and Shen, Squeeze, Recover and Relabel (SRe2L, arXiv:2306.13092).

  Args:
    x: [B, ..., C], the input of the batch norm; its statistics are over all axes but the last, the
      variance without Bessel's correction.
    mean, variance: [C], the running statistics of the layer.
  """
  x, mean, variance = floats(x, mean, variance)
  axes = tuple(range(x.ndim - 1))
  return norm(jnp.var(x, axis=axes) - variance) + norm(jnp.mean(x, axis=axes) - mean)


def batch_norm_total(distances: Sequence[jax.Array], *, first: float = 10.0) -> jax.Array:
  """first d_0 + d_1 + d_2 + ...: the layers' distances, the first layer weighed more.

  Args:
    distances: scalars of `batch_norm_distance`, in the order of the layers.
    first: 10 in SRe2L's code.
  """
  return jnp.asarray(sum(distances)) + (first - 1) * distances[0]


def differences(images: jax.Array) -> list[jax.Array]:
  """Of neighbours: horizontal, vertical, and on both diagonals."""
  return [
    images[:, :, :-1] - images[:, :, 1:],
    images[:, :-1] - images[:, 1:],
    images[:, 1:, :-1] - images[:, :-1, 1:],
    images[:, :-1, :-1] - images[:, 1:, 1:],
  ]


def total_variation(images: jax.Array, *, order: int = 2) -> jax.Array:
  """The sum over four directions of |difference of neighbours|, a scalar.

  Order 2 is the Euclidean norm over the whole batch, neither squared nor averaged, so it grows with
  the square root of the batch; order 1 the mean of absolute values. Both as in the code of
  DeepInversion (arXiv:1912.08795) and SRe2L (arXiv:2306.13092).

  Args:
    images: [B, H, W, C].

  Raises:
    ValueError: another order.
  """
  (images,) = floats(images)
  if order == 2:
    return sum(map(norm, differences(images)), jnp.zeros((), images.dtype))
  if order == 1:
    means = (jnp.mean(d * jnp.sign(d)) for d in differences(images))  # a gradient of 0 at 0
    return sum(means, jnp.zeros((), images.dtype))
  raise ValueError(f"no total variation of order {order}: 1 or 2")


def image_norm(images: jax.Array) -> jax.Array:
  """|image|_2 of each, [B]; SRe2L's prior is their mean."""
  (images,) = floats(images)
  return norm(images, axis=tuple(range(1, images.ndim)))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """-mean log softmax(logits)[label]: [B, C] and int [B] to a scalar."""
  log_p = log_softmax(logits)
  return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=1))


def recovery(
  logits: jax.Array, labels: jax.Array, batch_norm: jax.Array, *, r_bn: float = 0.01
) -> jax.Array:
  """cross_entropy(logits, labels) + r_bn batch_norm, what the images minimise; a scalar.

  Yin, Xing and Shen, Squeeze, Recover and Relabel (SRe2L, arXiv:2306.13092). The code adds
  total_variation and the mean of image_norm, with weights that are 0 for ImageNet.

  Args:
    logits: [B, C], of the trained network on the images, its batch norms in evaluation mode.
    labels: int [B].
    batch_norm: scalar of `batch_norm_total`.
  """
  return cross_entropy(logits, labels) + r_bn * batch_norm


def committee_weights(accuracies: jax.Array, *, temperature: float | jax.Array = 5.0) -> jax.Array:
  """softmax(accuracies / temperature): each network's vote by what it is known to score.

  Cui et al., Dataset Distillation via Committee Voting (CV-DD, arXiv:2501.07575). Their code has
  temperature 5 for the images and 10 for the labels; infinity gives equal votes.

  Args:
    accuracies: [M], in percent.
  """
  (accuracies,) = floats(accuracies)
  return jax.nn.softmax(accuracies / temperature)


def committee(values: jax.Array, weights: jax.Array) -> jax.Array:
  """sum_m weights_m values_m: of the networks' `recovery` losses, [M], or of their logits,
  [M, B, C], for the soft labels.

  CV-DD (arXiv:2501.07575). The weights sum to 1.
  """
  return jnp.tensordot(weights, values, axes=1)


def least_crop(
  step: jax.Array | int,
  *,
  steps: int,
  mode: str = "cosine",
  milestone: float = 1.0,
  least: float = 0.08,
) -> jax.Array:
  """The smallest share of an image's area that random crops may have at a step, easy to hard.

  With p = step / (milestone steps), while p < 1: "step" 1, "linear" 1 - (1 - least) p, "cosine"
  least + (1 - least) (1 + cos(pi p)) / 2; `least` after that. The largest share is 1. Yin and Shen,
  Dataset Distillation in Large Data Era (CDA, arXiv:2311.18838).

  Args:
    step: from 0, of any shape; may be traced.
    steps: of the whole run.
    milestone: share of the run that the curriculum takes; at 0 there is none.

  Raises:
    ValueError: no such mode.
  """
  end = milestone * steps
  progress = jnp.asarray(step) / (end if end > 0 else 1.0)
  match mode:
    case "step":
      share = jnp.ones_like(progress)
    case "linear":
      share = 1 - progress
    case "cosine":
      share = (1 + jnp.cos(jnp.pi * progress)) / 2
    case _:
      raise ValueError(f"no curriculum {mode!r}: step, linear or cosine")
  return jnp.where(jnp.asarray(step) < end, least + (1 - least) * share, least)
