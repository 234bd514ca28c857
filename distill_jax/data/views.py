"""What a training sees of an image: a crop, a flip, a mixture, all drawn from an address.

A view is a pure function of (key, epoch, image id): no batch, order, host or generator enters, so a
teacher's labels of it can be made anywhere and met anywhere (data/soft_labels.py). A partner of a
mixture is an image id too, seen in its own view of the same epoch.

A box is [top, left, height, width] in shares of the image's sides, not whole pixels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

ASPECT = 4 / 3  # of a crop, at most, and its inverse
MIXES = ("none", "mixup", "cutmix")


class View(NamedTuple):
  """Of one image; or of several, with a first axis."""

  box: jax.Array  # [4], of the crop
  flip: jax.Array  # bool
  partner: jax.Array  # int32, the image id it is mixed with
  share: jax.Array  # that it keeps in a mixture; 1: none
  hole: jax.Array  # [4], of a cutmix, a box in the crop


def crop_box(key: jax.Array, least: jax.Array | float, shape: tuple[int, ...]) -> jax.Array:
  """A random box [4]: area uniform in [least, 1], aspect log-uniform in [3/4, 4/3] in pixels.

  A side that would be longer than the image is cut to it, where torchvision draws again.

  Args:
    key: randomness.
    least: the smallest area, a share of the image's; may be traced. At 1 a square image is whole
      only if its aspect is 1.
    shape: height and width of the image.
  """
  of_area, of_aspect, of_place = jax.random.split(key, 3)
  area = jax.random.uniform(of_area, minval=least, maxval=1.0)
  aspect = jnp.exp(jax.random.uniform(of_aspect, minval=-1.0) * jnp.log(ASPECT))
  aspect = aspect * shape[0] / shape[1]  # of shares
  sides = jnp.minimum(jnp.sqrt(jnp.stack([area / aspect, area * aspect])), 1.0)
  return jnp.concatenate([jax.random.uniform(of_place, (2,)) * (1 - sides), sides])


def crop(image: jax.Array, box: jax.Array) -> jax.Array:
  """The box [4] of an image [H, W, C], enlarged to the image's size, bilinear. Linear in the image,
  two matrix products; neighbours just outside the box take part at its border."""
  sides = jnp.asarray(image.shape[:2], image.dtype)
  scale = 1 / box[2:]
  return jax.image.scale_and_translate(
    image, image.shape, (0, 1), scale, -box[:2] * sides * scale, method="linear", antialias=False
  )


def view(
  key: jax.Array,
  epoch: jax.Array | int,
  image_id: jax.Array | int,
  shape: tuple[int, ...],
  *,
  images: int,
  least: float = 0.08,
  flip: bool = True,
  mix: str = "cutmix",
) -> View:
  """How image number `image_id` is seen in an epoch.

  Args:
    key: of the whole set of labels.
    epoch, image_id: ints; may be traced, and vmapped over.
    shape: height and width of the images.
    images: how many there are, for the partner.
    least: area of a crop, at least.
    flip: whether half of the views are mirrored.
    mix: none, mixup or cutmix, whose share is uniform in [0, 1]: Beta(1, 1).

  Raises:
    ValueError: no such mixture.
  """
  if mix not in MIXES:
    raise ValueError(f"mix: no {mix!r}: {', '.join(MIXES)}")
  key = jax.random.fold_in(jax.random.fold_in(key, epoch), image_id)
  of_crop, of_flip, of_partner, of_share, of_hole = jax.random.split(key, 5)
  share = jnp.float32(1) if mix == "none" else jax.random.uniform(of_share)
  side = jnp.sqrt(1 - share)
  low = jnp.clip(jax.random.uniform(of_hole, (2,)) - side / 2, 0, 1 - side)
  return View(
    box=crop_box(of_crop, least, shape),
    flip=jax.random.bernoulli(of_flip, 0.5) & flip,
    partner=jax.random.randint(of_partner, (), 0, images),
    share=share,
    hole=jnp.concatenate([low, jnp.stack([side, side])]),
  )


def single(image: jax.Array, view: View) -> jax.Array:
  """An image [H, W, C] cropped and flipped, not mixed."""
  seen = crop(image, view.box)
  return jnp.where(view.flip, seen[:, ::-1], seen)


def mixed(image: jax.Array, partner: jax.Array, view: View, *, mix: str) -> jax.Array:
  """An image with its partner, both [H, W, C] and cropped already: share image + (1 - share)
  partner, or the partner's pixels where the hole covers their middle."""
  if mix == "none":
    return image
  if mix == "mixup":
    return view.share * image + (1 - view.share) * partner
  place = [(jnp.arange(side) + 0.5) / side for side in image.shape[:2]]
  inside = [
    (view.hole[i] <= place[i]) & (place[i] < view.hole[i] + view.hole[i + 2]) for i in range(2)
  ]
  return jnp.where((inside[0][:, None] & inside[1])[..., None], partner, image)


def partners(key: jax.Array, epoch: jax.Array | int, images: int) -> jax.Array:
  """int32 [images]: whom each is mixed with in an epoch."""
  address = lambda i: view(key, epoch, i, (1, 1), images=images).partner  # noqa: E731
  return jax.vmap(address)(jnp.arange(images))


def pairs(
  x: jax.Array,
  other: jax.Array,
  key: jax.Array,
  epoch: jax.Array | int,
  ids: jax.Array,
  *,
  images: int,
  mix: str = "cutmix",
  **options,
) -> jax.Array:
  """Views [B, H, W, C] of images x [B, H, W, C] in an epoch, each with its own partner.

  Args:
    x, other: images ids int [B] of the set, and their partners.
    key, epoch, images, mix, options: as in `view`.
  """

  def one(x, other, i):
    address = lambda i: view(key, epoch, i, x.shape[:2], images=images, mix=mix, **options)  # noqa: E731
    own = address(i)
    seen = single(x, own)
    if mix == "none":
      return seen
    return mixed(seen, single(other, address(own.partner)), own, mix=mix)

  return jax.vmap(one)(x, other, ids)


def batch(
  images: jax.Array, key: jax.Array, epoch: jax.Array | int, ids: jax.Array, **options
) -> jax.Array:
  """`pairs` out of the whole set [N, H, W, C]."""
  other = images[partners(key, epoch, len(images))[ids]]
  return pairs(images[ids], other, key, epoch, ids, images=len(images), **options)
