"""A distilled set as a folder: set.safetensors, set.json that says what is in it, and set.png.

  python -m distill_jax.distilled.artifact --workdir runs/dm --out my_set
  python -m distill_jax.distilled.artifact --from mtt THEIR_FOLDER --data fashion --out my_set
  python -m distill_jax.distilled.artifact --set my_set --to vico --out theirs.pt

`load` checks every length, shape, type and hash before anything is used, and refuses a set whose
preprocessing is not that of the images it shall meet. No pickle. For the layouts of others see
layouts.py.
"""

import argparse
import hashlib
import json
import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np

from distill_jax import config as config_lib
from distill_jax.config import ConfigError
from distill_jax.distilled import contact_sheet, preprocessing

KINDS = ("hard", "logits", "regression", "per_epoch")
FORMAT = 1


class DistilledDataset(NamedTuple):
  """Images and what is needed to train on them; host arrays."""

  images: np.ndarray  # float32 [N, H, W, C], preprocessed
  labels: np.ndarray  # int32 [N]; float32 [N, classes], or [epochs, N, classes] if per_epoch
  label_kind: str  # hard | logits | regression | per_epoch (logits of each epoch)
  lr: float | None  # learned, of training on the set
  preprocessing: preprocessing.Arrays  # of preprocessing.fit; {}: images in [-1, 1]
  protocol: dict[str, Any]  # of protocol.default_config: how the set is judged
  provenance: dict[str, Any]  # config, versions, step; with sha256 of each array when loaded


def classes_of(dataset: DistilledDataset) -> np.ndarray:
  """int [N]: the labels, or the largest of the soft ones (of the first epoch)."""
  labels = dataset.labels[0] if dataset.label_kind == "per_epoch" else dataset.labels
  return labels if dataset.label_kind == "hard" else labels.argmax(axis=-1)


def converted(dataset: DistilledDataset, arrays: preprocessing.Arrays) -> DistilledDataset:
  """The same images under another preprocessing."""
  images = preprocessing.invert(dataset.preprocessing, dataset.images)
  return dataset._replace(images=preprocessing.apply(arrays, images), preprocessing=arrays)


def save(folder: pathlib.Path, dataset: DistilledDataset) -> None:
  """Writes the three files.

  Raises:
    ConfigError: the set is not as its class says.
  """
  from safetensors.numpy import save as serialize

  _check(str(folder), dataset)
  arrays = _arrays(dataset)
  described = {
    name: dict(shape=list(x.shape), dtype=str(x.dtype), sha256=_hash(x))
    for name, x in arrays.items()
  }
  provenance = {k: v for k, v in dataset.provenance.items() if k != "sha256"}
  stored = dict(
    format=FORMAT,
    label_kind=dataset.label_kind,
    preprocessing=_kind(dataset.preprocessing),
    arrays=described,
    protocol=dataset.protocol,
    provenance=provenance,
  )
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "set.safetensors").write_bytes(serialize(arrays))
  config_lib.write_whole(folder / "set.json", json.dumps(stored, indent=2) + "\n")
  pixels = preprocessing.invert(dataset.preprocessing, dataset.images)
  contact_sheet.write(folder / "set.png", pixels, classes_of(dataset))


def load(folder: pathlib.Path, expect: preprocessing.Arrays | None = None) -> DistilledDataset:
  """A set from its folder.

  Args:
    folder: with set.json and set.safetensors.
    expect: the preprocessing of the images that networks will meet (image_set.fitted); None: any.

  Raises:
    ConfigError: a file is missing, changed or not what it says, or the preprocessing is another.
  """
  from safetensors import SafetensorError
  from safetensors.numpy import load as parse

  folder = pathlib.Path(folder)
  stored = _read_json(folder / "set.json")
  file = folder / "set.safetensors"
  if not file.is_file():
    raise ConfigError(f"No file {file}.")
  try:
    arrays = parse(file.read_bytes())
  except SafetensorError as error:
    raise ConfigError(f"{file} is not a whole safetensors file ({error}): make it again.") from None
  described = stored["arrays"]
  if set(arrays) != set(described):
    names = ", ".join(sorted(set(arrays) ^ set(described)))
    raise ConfigError(f"{file}: {names} is not in both files: make them again, together.")
  for name, x in arrays.items():
    found = dict(shape=list(x.shape), dtype=str(x.dtype), sha256=_hash(x))
    for field, value in found.items():
      if described[name].get(field) != value:
        raise ConfigError(
          f"{file}: {field} of {name} is {value}, set.json says {described[name].get(field)}: one "
          "of the files was changed; make them again."
        )
  if not {"images", "labels"} <= set(arrays):
    raise ConfigError(f"{file} has no images and labels: make it again.")
  lr = arrays.pop("lr", None)
  images, labels = arrays.pop("images"), arrays.pop("labels")
  hashes = {name: of["sha256"] for name, of in described.items()}
  dataset = DistilledDataset(
    images,
    labels,
    stored["label_kind"],
    None if lr is None else float(lr),
    {name.removeprefix("preprocessing."): x for name, x in arrays.items()},
    stored["protocol"],
    dict(stored["provenance"], sha256=hashes),
  )
  _check(str(folder), dataset)
  if stored["preprocessing"] != _kind(dataset.preprocessing):
    raise ConfigError(
      f"{folder}: preprocessing is {stored['preprocessing']!r} in set.json, its arrays are of "
      f"{_kind(dataset.preprocessing)!r}: make the set again."
    )
  if expect is not None:
    _agree(str(folder), dataset.preprocessing, expect)
  return dataset


def _arrays(dataset) -> dict[str, np.ndarray]:
  arrays = dict(images=dataset.images, labels=dataset.labels)
  arrays.update({f"preprocessing.{name}": x for name, x in dataset.preprocessing.items()})
  if dataset.lr is not None:
    arrays["lr"] = np.float32(dataset.lr).reshape(())
  return {name: np.ascontiguousarray(x).reshape(x.shape) for name, x in sorted(arrays.items())}


def _check(where: str, dataset: DistilledDataset) -> None:
  """That the parts of a set belong together."""
  images, labels, kind = dataset.images, dataset.labels, dataset.label_kind

  def need(condition, says):
    if not condition:
      raise ConfigError(f"{where}: {says}.")

  need(kind in KINDS, f"label_kind is {kind!r}, one of {', '.join(KINDS)} is known")
  need(images.ndim == 4 and images.dtype == np.float32, "images are not float32 [N, H, W, C]")
  need(len(images) > 0, "images are none")
  need(np.isfinite(images).all(), "images are not all finite")
  if kind == "hard":
    need(labels.dtype == np.int32 and labels.ndim == 1, "hard labels are not int32 [N]")
    need(labels.min(initial=0) >= 0, "labels are not all classes")
  else:
    axes = 3 if kind == "per_epoch" else 2
    need(labels.dtype == np.float32 and labels.ndim == axes, f"labels of {kind} are not float32")
    need(np.isfinite(labels).all(), "labels are not all finite")
  count = labels.shape[1] if kind == "per_epoch" else len(labels)
  need(count == len(images), f"labels are of {count} images, there are {len(images)}")
  need(dataset.lr is None or 0 < dataset.lr < np.inf, f"lr is {dataset.lr}, not a positive number")
  pixels, channels = int(np.prod(images.shape[1:])), images.shape[-1]
  vector, square = (channels,), (pixels, pixels)
  shapes: dict[str, tuple[int, ...]] = dict(mean=vector, std=vector, center=(pixels,))
  shapes.update(dict.fromkeys(("whiten", "color"), square))
  names = set(dataset.preprocessing)
  need(names in (set(), {"mean", "std"}, set(shapes)), f"preprocessing is {sorted(names)}")
  for name, x in dataset.preprocessing.items():
    fits = x.shape == shapes[name] and x.dtype == np.float32
    need(fits, f"preprocessing.{name} is {x.dtype}{list(x.shape)}, not float32{list(shapes[name])}")


def _agree(where: str, found: preprocessing.Arrays, expect: preprocessing.Arrays) -> None:
  remedy = "set data.preprocess as the set has it, or use artifact.converted"
  if _kind(found) != _kind(expect):
    raise ConfigError(
      f"{where}: preprocessing is {_kind(found)!r}, these images have {_kind(expect)!r}: {remedy}."
    )
  for name, x in found.items():
    want = np.asarray(expect[name])
    if x.shape != want.shape or not np.allclose(x, want, rtol=1e-4, atol=1e-5):
      raise ConfigError(
        f"{where}: preprocessing.{name} is not that of these images, such as of another dataset or "
        f"part of it: {remedy}."
      )


def _kind(arrays) -> str:
  return "zca" if "whiten" in arrays else "standardize" if arrays else "none"


def _hash(x: np.ndarray) -> str:
  return hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()


def _read_json(file: pathlib.Path) -> dict[str, Any]:
  if not file.is_file():
    raise ConfigError(f"No file {file}.")
  try:
    stored = json.loads(file.read_text())
  except ValueError as error:
    raise ConfigError(f"{file} is not JSON ({error}): make it again.") from None
  types = dict(
    format=int, label_kind=str, preprocessing=str, arrays=dict, protocol=dict, provenance=dict
  )
  for key, kind in types.items():
    if not isinstance(stored, dict) or not isinstance(stored.get(key), kind):
      raise ConfigError(f"{file} has no {key!r}: make it again.")
  if stored["format"] != FORMAT:
    raise ConfigError(f"{file}: format is {stored['format']}, this version reads {FORMAT}.")
  if not all(isinstance(of, dict) for of in stored["arrays"].values()):
    raise ConfigError(f"{file}: arrays are not described: make it again.")
  return stored


def main(argv: list[str]) -> int:
  from distill_jax.distilled import layouts, runs  # which need the set's class

  names = tuple(layouts.LAYOUTS)
  parser = argparse.ArgumentParser(
    prog="python -m distill_jax.distilled.artifact", allow_abbrev=False
  )
  given = parser.add_mutually_exclusive_group(required=True)
  given.add_argument("--workdir", type=pathlib.Path, help="a run")
  given.add_argument("--set", type=pathlib.Path, help="a folder of this module")
  given.add_argument(
    "--from", dest="foreign", nargs=2, metavar=("LAYOUT", "PATH"), help=", ".join(names)
  )
  parser.add_argument("--data", default="", help="of --from: digits, fashion, tfds:NAME")
  parser.add_argument(
    "--preprocess", default="standardize", choices=preprocessing.KINDS, help="of --from mtt"
  )
  parser.add_argument("--to", default="", choices=("", *names), help="default: a folder of ours")
  parser.add_argument("--out", required=True, type=pathlib.Path)
  args = parser.parse_args(argv)
  try:
    if args.foreign:
      layout, path = args.foreign
      dataset = layouts.read(layout, pathlib.Path(path), args.data, args.preprocess)
    else:
      dataset = runs.read(args.workdir) if args.workdir else load(args.set)
    if args.to:
      layouts.write(args.to, args.out, dataset)
    else:
      save(args.out, dataset)
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(f"{args.out}: {len(dataset.images)} images, labels {dataset.label_kind}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
