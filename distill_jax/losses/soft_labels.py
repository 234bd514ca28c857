"""Stored soft labels: expanding compressed ones, mixing them as the images, learning from them.

Labels are probabilities [B, C] unless they are called logits. Losses are [B], float32 or float64.
"""

import jax
import jax.numpy as jnp

from distill_jax.losses.denoising import expand, floats
from distill_jax.losses.divergences import forward_kl
from distill_jax.losses.log_probs import log_softmax


def expanded(
  index: jax.Array, value: jax.Array, *, num_classes: int, renormalize: bool = False
) -> jax.Array:
  """All C probabilities from the K stored ones.

  The other classes share what is left, (1 - sum value) / (C - K) each, "marginal smoothing"; with
  `renormalize` they get 0 and the stored ones are divided by their sum, "marginal re-norm". K = 1
  is a smoothed label, and with value 1 a hard one. Shen and Xing, A Fast Knowledge Distillation
  Framework for Visual Recognition (FKD, arXiv:2112.01528).

  Args:
    index: int [B, K], distinct within a row.
    value: [B, K].

  Returns:
    [B, C].

  Raises:
    ValueError: more than C probabilities.
  """
  if index.shape[1] > num_classes:
    raise ValueError(f"{index.shape[1]} probabilities of {num_classes} classes")
  (value,) = floats(value)
  rest = jnp.zeros_like(value[:, :1])
  if renormalize:
    total = jnp.sum(jnp.abs(value), axis=1, keepdims=True)
    value = value / jnp.maximum(total, 1e-12)
  else:
    left = 1 - jnp.sum(value, axis=1, keepdims=True)
    rest = left / max(num_classes - index.shape[1], 1)
  full = jnp.broadcast_to(rest, (len(value), num_classes))
  return full.at[jnp.arange(len(value))[:, None], index].set(value)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """-sum_c label_c log softmax(logits)_c: [B, C] and [B, C] to [B].

  A class of label 0 counts 0, also where its logit is -inf. Gradients flow into both.
  """
  logits, labels = floats(logits, labels)
  log_p = log_softmax(logits)
  return -jnp.sum(labels * jnp.where(labels != 0, log_p, 0.0), axis=-1)


def mixed(x: jax.Array, partner: jax.Array, share: jax.Array | float) -> jax.Array:
  """share x + (1 - share) partner, for images (mixup) and for the labels of both mixings.

  Zhang et al., mixup: Beyond Empirical Risk Minimization (arXiv:1710.09412).

  Args:
    x, partner: [B, ...].
    share: of x, in [0, 1], a number or [B].
  """
  x, partner = floats(x, partner)
  share = expand(jnp.asarray(share, x.dtype), x)
  return share * x + (1 - share) * partner


def cut_box(
  center: tuple[jax.Array | int, jax.Array | int],
  share: jax.Array | float,
  *,
  size: tuple[int, int],
) -> jax.Array:
  """(top, bottom, left, right) of the rectangle that is cut: int [..., 4], ends exclusive.

  Its sides reach floor(size sqrt(1 - share)) // 2 to both sides of the center, and end at the
  image's border. Yun et al., CutMix (arXiv:1905.04899), as in the code of FKD.

  Args:
    center: row and column, ints or int [...].
    share: what the image should keep, a number or [...]; what it does keep is `kept_share`.
    size: height and width of the images.
  """
  edges = []
  for middle, length in zip(center, size, strict=True):
    half = jnp.floor(length * jnp.sqrt(1 - jnp.asarray(share, float))).astype(jnp.int32) // 2
    edges += [jnp.clip(middle - half, 0, length), jnp.clip(middle + half, 0, length)]
  return jnp.stack(jnp.broadcast_arrays(*edges), axis=-1)


def kept_share(box: jax.Array, *, size: tuple[int, int]) -> jax.Array:
  """1 - area of the box / area of the image: [..., 4] to [...]."""
  top, bottom, left, right = jnp.moveaxis(box, -1, 0)
  return 1 - (bottom - top) * (right - left) / (size[0] * size[1])


def pasted(images: jax.Array, partner: jax.Array, box: jax.Array) -> jax.Array:
  """The images with the box of their partners in place of their own (CutMix).

  Their labels are `mixed` with `kept_share` of the box.

  Args:
    images, partner: [B, H, W, C].
    box: int [4] or [B, 4], of `cut_box`.
  """
  height, width = images.shape[1:3]
  top, bottom, left, right = jnp.moveaxis(jnp.atleast_2d(box)[:, :, None], 1, 0)
  row, column = jnp.arange(height), jnp.arange(width)
  rows, columns = (top <= row) & (row < bottom), (left <= column) & (column < right)
  return jnp.where((rows[:, :, None] & columns[:, None])[..., None], partner, images)


def stored_kl(
  logits: jax.Array,
  stored: jax.Array,
  *,
  temperature: float | jax.Array = 20.0,
  shrink: float = 0.0,
  where: jax.Array | None = None,
) -> jax.Array:
  """KL(softmax((1 - shrink) stored / T) || softmax(logits / T)), [B], without a factor T^2.

  Yin, Xing and Shen, Squeeze, Recover and Relabel (SRe2L, arXiv:2306.13092), T = 20; Xiao and He,
  Are Large-scale Soft Labels Necessary for Large-scale Dataset Distillation? (arXiv:2410.15919),
  with only a part of the labels kept; their code multiplies by T^2 for Tiny-ImageNet alone.

  Args:
    logits: [B, C], the student's.
    stored: [B, C], the teacher's logits of the same crops and mixtures. No gradient flows in.
    shrink: that code's label smoothing, which it applies to logits: a higher temperature of the
      teacher, no mixture with the uniform distribution. 0 in the paper.
    where: bool [B], the labels that were kept; others count 0.
  """
  return forward_kl(logits, (1 - shrink) * stored, temperature=temperature, where=where)
