"""A teacher's labels of the views of a set, addressed by (epoch, image id).

The views follow from the address (data/views.py), so a folder holds nothing but the labels, and a
student may meet them in any batches, in any order, on any number of hosts. Of each label the `k`
largest log-probabilities are kept, as data/signals.py codes them; ten of 10 classes is all of them.

The folder has `manifest.json` and a file EPOCH.arrayrecord for each epoch, with one record: the
labels of all images by their number. A file is there whole or not at all: an interrupted writer
goes on with those that are missing. With 32 of 1,000 classes in 8 bits a label takes 84 bytes.

Yin, Xing and Shen, Squeeze, Recover and Relabel (SRe2L, arXiv:2306.13092), whose labels belong to
batches, 2,000 bytes each; Shen and Xing, A Fast Knowledge Distillation Framework for Visual
Recognition (FKD, arXiv:2112.01528).
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from distill_jax import cache
from distill_jax.config import ConfigError
from distill_jax.data import signals, views
from distill_jax.losses.log_probs import log_softmax

FORMAT = "distill_jax soft labels 1"
K, BITS = 32, 8
Apply = Callable[[Any, jax.Array], jax.Array]


def describe(
  images: np.ndarray,
  *,
  classes: int,
  epochs: int,
  seed: int = 0,
  k: int = K,
  bits: int = BITS,
  least: float = 0.08,
  flip: bool = True,
  mix: str = "cutmix",
  teacher: str = "",
) -> dict[str, Any]:
  """What the manifest of a folder says.

  Args:
    images: [N, H, W, C], the set, preprocessed as the teacher wants it.
    classes: of the teacher.
    epochs: how many views of each image there are.
    seed: of the key of all views.
    k: log-probabilities of a label, at most as many as there are classes.
    bits: of each.
    least, flip, mix: as in `views.view`.
    teacher: what to call it, for example a digest of its weights.
  """
  return dict(
    format=FORMAT,
    shape=list(images.shape),
    digest=hashlib.sha256(np.ascontiguousarray(images, "<f4").tobytes()).hexdigest(),
    teacher=teacher,
    classes=classes,
    epochs=epochs,
    seed=seed,
    k=min(k, classes),
    bits=bits,
    least=least,
    flip=flip,
    mix=mix,
  )


def view_options(fields: dict[str, Any]) -> dict[str, Any]:
  """The options of `views.batch`."""
  return {name: fields[name] for name in ("least", "flip", "mix")}


def key(fields: dict[str, Any]) -> jax.Array:
  """Of all views."""
  return jax.random.key(fields["seed"])


def labeller(fields: dict[str, Any], apply: Apply, mesh: Mesh) -> Callable:
  """A compiled function (params, x, other, epoch, ids) -> log-probabilities and classes [B, k] of
  the views, the likeliest first; x and other as in `views.pairs`. The batch lies over the devices,
  the parameters on each; it must divide by their number.

  Args:
    fields: of `describe`.
    apply: (params, images [B, H, W, C]) to logits [B, classes]; must treat each image alone.
    mesh: of the devices of one process, with one axis "batch".
  """
  form, images = layout(fields), fields["shape"][0]
  split, whole = (NamedSharding(mesh, jax.P(*axes)) for axes in (["batch"], []))

  def look(params, x, other, epoch, ids):
    seen = views.pairs(x, other, key(fields), epoch, ids, images=images, **view_options(fields))
    return jax.lax.top_k(log_softmax(apply(params, seen)), form.k)

  return jax.jit(look, in_shardings=(whole, split, split, whole, split), out_shardings=split)


def write(
  folder: pathlib.Path,
  fields: dict[str, Any],
  images: np.ndarray,
  apply: Apply,
  params: Any,
  *,
  batch_size: int = 100,
  process: int = 0,
  processes: int = 1,
) -> None:
  """Writes the epochs that are missing; of several processes each takes every n-th, and labels on
  all of its devices. The set stays on the host, but for the batch.

  Args:
    folder: of the labels.
    fields: of `describe`.
    images: the set that `fields` describes.
    apply, params: the teacher, as in `labeller`.
    batch_size: no part of the result, but for the rounding of the teacher's sums; raised to a
      multiple of the devices.
    process, processes: this writer and how many there are.

  Raises:
    ConfigError: the folder has labels of something else.
  """
  folder.mkdir(parents=True, exist_ok=True)
  if (folder / "manifest.json").exists():
    check(read_manifest(folder), fields, folder)
  else:
    with cache.published(folder / "manifest.json") as temporary:
      temporary.write_text(json.dumps(fields, indent=2) + "\n")
  mesh, n = Mesh(np.array(jax.local_devices()), "batch"), len(images)
  look, params = labeller(fields, apply, mesh), jax.device_put(params, NamedSharding(mesh, jax.P()))
  batch_size += -batch_size % jax.local_device_count()
  partners = jax.jit(lambda epoch: views.partners(key(fields), epoch, n))

  for epoch in range(process, fields["epochs"], processes):
    file = _file(folder, epoch)
    if file.exists():
      continue
    other, parts = np.asarray(partners(epoch)), []
    for begin in range(0, n, batch_size):
      ids = np.minimum(np.arange(begin, begin + batch_size), n - 1)
      found = jax.device_get(look(params, images[ids], images[other[ids]], epoch, ids))
      parts.append([x[: n - begin] for x in found])
    values, classes = (np.concatenate(x) for x in zip(*parts, strict=True))
    write_epoch(folder, fields, epoch, classes, values)


def write_epoch(
  folder: pathlib.Path, fields: dict[str, Any], epoch: int, index: np.ndarray, log_p: np.ndarray
) -> None:
  """One file: int [N, k] classes, the likeliest first, and their log-probabilities [N, k]."""
  from array_record.python.array_record_module import ArrayRecordWriter

  with cache.published(_file(folder, epoch)) as temporary:
    writer = ArrayRecordWriter(str(temporary), "group_size:1")
    writer.write(signals.encode(layout(fields), index, log_p, None))
    writer.close()


def reader(
  folder: pathlib.Path, images: np.ndarray | None = None
) -> Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]:
  """(epoch, ids int [B]) -> classes int32 [B, k] and log-probabilities float32 [B, k] of the views.

  `losses.soft_labels.expanded` makes all probabilities of them. The last two epochs are held.

  Args:
    folder: of the labels.
    images: the set they should belong to, if it is to be checked.

  Raises:
    ConfigError: no labels, of another set, or damaged.
  """
  fields = read_manifest(folder)
  if images is not None:
    own = {name: describe(images, classes=0, epochs=0)[name] for name in ("shape", "digest")}
    check(fields, fields | own, folder)

  @functools.lru_cache(2)
  def of_epoch(epoch: int) -> tuple[np.ndarray, np.ndarray]:
    from array_record.python.array_record_module import ArrayRecordReader

    file = _file(folder, epoch)
    if not file.exists():
      raise ConfigError(f"No file {file}: run python -m distill_jax.relabel again.")
    try:
      record = ArrayRecordReader(str(file), "readahead_buffer_size:0,max_parallelism:0").read([0])
      found = signals.decode(layout(fields), record[0])
    except (RuntimeError, ValueError, IndexError) as error:
      reason = str(error).partition(";")[0]
      raise ConfigError(f"{file}: {reason}. Delete the file, to write it anew.") from None
    return found["teacher_ids"], found["teacher_log_probs"]

  def labels(epoch: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    index, log_p = of_epoch(int(epoch))
    return index[ids], log_p[ids]

  return labels


def whole(folder: pathlib.Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Of every epoch: classes int32 [epochs, N, k] and log-probabilities float32 [epochs, N, k]."""
  read, ids = reader(folder, images), np.arange(len(images))
  found = [read(epoch, ids) for epoch in range(read_manifest(folder)["epochs"])]
  index, log_p = (np.stack(x) for x in zip(*found, strict=True))
  return index, log_p


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
  """What `describe` said when the folder was begun."""
  file = folder / "manifest.json"
  try:
    fields = json.loads(file.read_text())
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
      raise ValueError(f"its format is not {FORMAT!r}")
    signals.size(layout(fields))
  except FileNotFoundError:
    raise ConfigError(f"No labels at {str(folder)!r}: it has no manifest.json.") from None
  except (ValueError, KeyError, TypeError) as error:
    raise ConfigError(f"{file} is damaged: {error}.") from None
  return fields


def check(found: dict[str, Any], expected: dict[str, Any], folder: pathlib.Path) -> None:
  """Raises ConfigError with the first field that differs."""
  for name, value in expected.items():
    if found.get(name) != value:
      raise ConfigError(f"{folder}: {name} is {found.get(name)!r}, not {value!r}.")


def layout(fields: dict[str, Any]) -> signals.Layout:
  """How the record of an epoch is coded: images in the place of tokens."""
  k, bits, classes = fields["k"], fields["bits"], fields["classes"]
  return signals.Layout("top_k", k, bits, classes, fields["shape"][0], "", 0)


def _file(folder: pathlib.Path, epoch: int) -> pathlib.Path:
  return folder / f"{epoch:05}.arrayrecord"
