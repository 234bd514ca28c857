"""Labels addressed by (epoch, image id): the same however they are made, small, and checked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.config import ConfigError
from distill_jax.data import signals, soft_labels, views
from distill_jax.losses.log_probs import log_softmax
from distill_jax.losses.soft_labels import expanded

N, SIDE, CLASSES = 13, 8, 20
IMAGES = np.asarray(jax.random.normal(jax.random.key(0), (N, SIDE, SIDE, 3)))
WEIGHTS = jax.random.normal(jax.random.key(1), (SIDE * SIDE * 3, CLASSES)) / 8


def teacher(weights, x):
  return x.reshape(len(x), -1) @ weights


def fields(**options):
  return soft_labels.describe(IMAGES, classes=CLASSES, epochs=3, **options)


@pytest.mark.parametrize("mix", views.MIXES)
def test_labels_do_not_depend_on_batches_order_or_hosts(tmp_path, mix):
  given = fields(mix=mix, k=CLASSES, bits=16)
  soft_labels.write(tmp_path / "one", given, IMAGES, teacher, WEIGHTS, batch_size=N)
  for process in (2, 0, 1):  # hosts, in any order, with another batch
    soft_labels.write(
      tmp_path / "three",
      given,
      IMAGES,
      teacher,
      WEIGHTS,
      batch_size=4,
      process=process,
      processes=3,
    )
  one, three = (soft_labels.reader(tmp_path / n, IMAGES) for n in ("one", "three"))
  ids = np.array([5, 12, 0, 5])
  for epoch in (2, 0):
    for a, b in zip(one(epoch, ids), three(epoch, ids), strict=True):
      np.testing.assert_allclose(a, b, atol=2e-4)
    # the student meets the same view alone, in a batch of its own
    for row in range(len(ids)):
      options = soft_labels.view_options(given)
      seen = views.batch(
        jnp.asarray(IMAGES), jax.random.key(0), epoch, ids[row : row + 1], **options
      )
      index, log_p = one(epoch, ids)
      exact = np.asarray(log_softmax(teacher(WEIGHTS, seen))[0])
      np.testing.assert_allclose(log_p[row], exact[index[row]], atol=1e-3)
  assert not np.array_equal(one(0, ids)[1], one(1, ids)[1])
  np.testing.assert_array_equal(one(0, ids)[1][0], one(0, ids)[1][3])


def test_an_interrupted_writer_goes_on_and_ends_in_the_same_bytes(tmp_path):
  soft_labels.write(tmp_path, fields(), IMAGES, teacher, WEIGHTS)
  files = sorted(tmp_path.glob("*.arrayrecord"))
  before = [f.read_bytes() for f in files]
  files[1].unlink()
  time = files[0].stat().st_mtime_ns
  soft_labels.write(tmp_path, fields(), IMAGES, teacher, WEIGHTS)
  assert [f.read_bytes() for f in files] == before
  assert files[0].stat().st_mtime_ns == time
  assert {f.name for f in tmp_path.iterdir()} == {"manifest.json", *(f.name for f in files)}


def realistic(n, classes, key):
  """Log-probabilities of a teacher that gives its class 0.2 to 0.99, and a heavy tail to others."""
  of_noise, of_class, of_sure = jax.random.split(key, 3)
  logits = 1.5 * jax.random.normal(of_noise, (n, classes))
  hit = jax.random.randint(of_class, (n,), 0, classes)
  sure = jax.random.uniform(of_sure, (n,), minval=6.5, maxval=13.0)
  return log_softmax(logits.at[jnp.arange(n), hit].add(sure))


def test_300_epochs_of_200_images_a_class_take_less_than_6_gb(tmp_path):
  """A hundredth of it, 3 epochs of 200,000 labels, in codes that no compression can shrink."""
  draw, n = np.random.default_rng(0), 200_000
  images = np.broadcast_to(np.float32(0), (n, 1, 1, 1))
  given = soft_labels.describe(images, classes=1000, epochs=3)
  for epoch in range(3):
    log_p = -6 - np.sort(draw.random((n, given["k"])), axis=1)
    index = draw.integers(0, 1000, log_p.shape)
    soft_labels.write_epoch(tmp_path, given, epoch, index, log_p)
  size = sum(f.stat().st_size for f in tmp_path.iterdir())
  print(f"{100 * size / 1e9:.2f} GB, {size / (3 * n):.1f} bytes a label")
  assert 100 * size < 6e9


def test_what_is_left_out_of_a_label_costs_little():
  n, classes = 200, 1000
  form = signals.Layout("top_k", soft_labels.K, soft_labels.BITS, classes, n, "", 0)
  exact = np.asarray(realistic(n, classes, jax.random.key(0)), np.float64)
  index = np.argsort(-exact, axis=1)[:, : form.k]
  record = signals.encode(form, index, np.take_along_axis(exact, index, axis=1), None)
  found = signals.decode(form, record)
  stored = np.exp(found["teacher_log_probs"].astype(np.float64))
  full = expanded(jnp.asarray(index), jnp.asarray(stored), num_classes=classes)
  divergence = (np.exp(exact) * (exact - np.log(np.asarray(full)))).sum(1)
  hit = np.exp(exact).max(1)
  print(f"KL {divergence.mean():.4f} nats, at most {divergence.max():.3f}; p {hit.mean():.2f}")
  assert divergence.mean() < 0.15


def test_views_are_those_of_their_address_and_their_labels_are_refused_for_other_images(tmp_path):
  draw = jax.vmap(lambda i: views.view(jax.random.key(3), 7, i, (8, 12), images=N, least=0.3))
  many, one = draw(jnp.arange(200)), draw(jnp.arange(150, 151))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[150:151], b), many, one)
  top, left, height, width = many.box.T
  assert (top >= 0).all() and (left >= 0).all()
  assert (top + height <= 1 + 1e-6).all() and (left + width <= 1 + 1e-6).all()
  assert ((height * width) > 0.3 * 0.6).all() and 60 < many.flip.sum() < 140
  kept = 1 - many.hole[:, 2] * many.hole[:, 3]
  np.testing.assert_allclose(kept, many.share, atol=1e-5)
  assert len(np.unique(many.partner)) == N

  soft_labels.write(tmp_path, fields(), IMAGES, teacher, WEIGHTS)
  with pytest.raises(ConfigError, match="digest is"):
    soft_labels.reader(tmp_path, IMAGES + 1)
  with pytest.raises(ConfigError, match=r"least is 0\.08, not 0\.5"):
    soft_labels.write(tmp_path, fields(least=0.5), IMAGES, teacher, WEIGHTS)
  file = tmp_path / "00001.arrayrecord"
  file.write_bytes(file.read_bytes()[:-10])
  with pytest.raises(ConfigError, match="00001"):
    soft_labels.reader(tmp_path)(1, np.arange(2))
  with pytest.raises(ConfigError, match=r"no manifest\.json"):
    soft_labels.reader(tmp_path / "none")


def test_a_crop_is_the_box_enlarged():
  ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None, None], (8, 8, 1))
  seen = views.crop(ramp, jnp.array([0.25, 0.0, 0.5, 1.0]))[:, 0, 0]
  np.testing.assert_allclose(seen, 2 + (np.arange(8) + 0.5) / 2 - 0.5, atol=1e-5)
  np.testing.assert_allclose(views.crop(ramp, jnp.array([0, 0, 1, 1.0])), ramp, atol=1e-5)
  gradient = jax.grad(lambda x: jnp.sum(views.crop(x, jnp.array([0.25, 0.5, 0.5, 0.5]))))(ramp)
  np.testing.assert_allclose(gradient.sum(), 64, rtol=1e-5)
