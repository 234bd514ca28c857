"""Distilled sets in the files of others, read and written.

  vico   one .pt: dict(data=[[images, labels], ..]), of DatasetCondensation (DC, DSA, DM) and those
         who began with its code; hard labels. The first pair is read.
  mtt    a folder with images_best.pt, labels_best.pt and maybe lr_best.pt, or else the largest N of
         images_N.pt; of mtt-distillation, FTD, TESLA and DATM. Labels of floats are logits.
  sre2l  a folder of folders, new000/class000_id000.jpg and so on, one for each class in the order
         of their names, as ImageFolder reads them. No labels but these; PNG is written, which
         loses nothing but the rounding to bytes.

Images in .pt files are NCHW, (pixel - mean) / std with pixels in [0, 1] and the constants of that
code: with pixels in [-1, 1] the same numbers come of 2 mean - 1 and 2 std. Data it does not know is
standardized by its own training images. ZCA (`preprocess` zca) is kornia's on those, here fitted
anew. torch reads with weights_only=True: tensors and containers, no code.
"""

import pathlib
import re
import warnings
from typing import Any

import numpy as np

from distill_jax.config import ConfigError, did_you_mean
from distill_jax.data import images as images_lib
from distill_jax.distilled import preprocessing
from distill_jax.distilled.artifact import DistilledDataset, classes_of, converted

CONSTANTS = {  # mean and std of pixels in [0, 1]
  "tfds:mnist": ([0.1307], [0.3081]),
  "fashion": ([0.2861], [0.3530]),
  "tfds:svhn_cropped": ([0.4377, 0.4438, 0.4728], [0.1980, 0.2010, 0.1970]),
  "tfds:cifar10": ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
}
PICTURES = (".png", ".jpg", ".jpeg")


def read(layout: str, path: pathlib.Path, source: str, preprocess: str) -> DistilledDataset:
  """A set out of the files of others.

  Args:
    layout: vico, mtt or sre2l.
    path: its file or folder.
    source: the dataset it was distilled from, as `config.data.source`.
    preprocess: standardize, zca or none; for sre2l, what pixels shall become.

  Raises:
    ConfigError: files are missing or not of the layout, or torch is.
  """
  if not source:
    raise ConfigError("--data: name the dataset that the set was distilled from, such as fashion.")
  reader, _ = _of(layout)
  shape = images_lib.load(source, "train").x.shape[1:]
  arrays = _arrays(source, preprocess)
  images, labels, lr = reader(path, shape)
  if images.shape[1:] != shape:
    raise ConfigError(f"{path}: images are {images.shape[1:]}, those of {source!r} are {shape}.")
  if layout == "sre2l":
    images = preprocessing.apply(arrays, images)
  hard = labels.ndim == 1
  labels = labels.astype(np.int32 if hard else np.float32)
  provenance = dict(layout=layout, file=path.name, data=source)
  kind = "hard" if hard else "logits"
  return DistilledDataset(images.astype(np.float32), labels, kind, lr, arrays, {}, provenance)


def write(layout: str, path: pathlib.Path, dataset: DistilledDataset) -> None:
  """A set as the files of others; images get the constants of that code.

  Raises:
    ConfigError: the layout has no such labels, or torch is missing.
  """
  _, writer = _of(layout)
  writer(path, dataset)


def _of(layout):
  if layout not in LAYOUTS:
    raise ConfigError(f"No layout {layout!r}." + did_you_mean(layout, LAYOUTS))
  return LAYOUTS[layout]


def _arrays(source: str, preprocess: str) -> preprocessing.Arrays:
  if preprocess == "standardize" and source in CONSTANTS:
    mean, std = (np.array(x, np.float32) for x in CONSTANTS[source])
    return dict(mean=2 * mean - 1, std=2 * std)
  return preprocessing.fit(preprocess, images_lib.load(source, "train").x)


def _theirs(dataset: DistilledDataset) -> DistilledDataset:
  """With the constants of their code; whitened images stay so."""
  provenance = dataset.provenance
  source = provenance.get("data") or provenance.get("config", {}).get("data", {}).get("source", "")
  if "whiten" in dataset.preprocessing or source not in CONSTANTS:
    return dataset
  return converted(dataset, _arrays(source, "standardize"))


def _torch() -> Any:
  try:
    import torch
  except ImportError:
    raise ConfigError("torch is not installed: pip install 'distill_jax[parity]'.") from None
  return torch


def _read_pt(file: pathlib.Path) -> Any:
  torch = _torch()
  if not file.is_file():
    raise ConfigError(f"No file {file}.")
  try:
    with warnings.catch_warnings():  # about layouts of old files
      warnings.simplefilter("ignore")
      return torch.load(file, map_location="cpu", weights_only=True)
  except Exception as error:  # of zipfile, pickle or torch
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise ConfigError(f"{file} is not a .pt file of tensors ({line[:200]}).") from None


def _array(file: pathlib.Path, x: Any) -> np.ndarray:
  if not hasattr(x, "detach"):
    raise ConfigError(f"{file}: {type(x).__name__} where a tensor should be.")
  return x.detach().cpu().numpy()


def _pair(file, images, labels) -> tuple[np.ndarray, np.ndarray]:
  images, labels = _array(file, images), _array(file, labels)
  if images.ndim != 4 or len(labels) != len(images):
    raise ConfigError(f"{file}: {images.shape} images and {labels.shape} labels do not match.")
  return images.transpose(0, 2, 3, 1), labels


def _read_vico(path, shape):
  stored = _read_pt(path)
  try:
    images, labels = stored["data"][0][:2]
  except (KeyError, IndexError, TypeError, ValueError):
    raise ConfigError(f"{path} has no data=[[images, labels], ..]: is it of this layout?") from None
  return *_pair(path, images, labels), None


def _write_vico(path, dataset):
  torch, dataset = _torch(), _theirs(dataset)
  if dataset.label_kind != "hard":
    raise ConfigError(f"--to vico: it has hard labels, this set {dataset.label_kind}; use mtt.")
  pair = [_tensor(dataset.images.transpose(0, 3, 1, 2)), _tensor(dataset.labels).long()]
  path.parent.mkdir(parents=True, exist_ok=True)
  torch.save(dict(data=[pair], accs_all_exps={}), path)


def _read_mtt(path, shape):
  if not path.is_dir():
    raise ConfigError(f"No folder {path}.")
  numbers = [re.fullmatch(r"images_(best|\d+)\.pt", file.name) for file in path.iterdir()]
  names = [match[1] for match in numbers if match]
  if not names:
    raise ConfigError(f"{path} has no images_best.pt and no images_N.pt.")
  name = "best" if "best" in names else max(names, key=int)
  file = path / f"images_{name}.pt"
  images, labels = _pair(file, _read_pt(file), _read_pt(path / f"labels_{name}.pt"))
  of_lr = path / f"lr_{name}.pt"
  lr = float(_read_pt(of_lr)) if of_lr.is_file() else None
  return images, labels, lr


def _write_mtt(path, dataset):
  torch, dataset = _torch(), _theirs(dataset)
  if dataset.label_kind == "per_epoch":
    raise ConfigError("--to mtt: it has one label for each image, this set one for each epoch.")
  labels = _tensor(dataset.labels)
  path.mkdir(parents=True, exist_ok=True)
  torch.save(_tensor(dataset.images.transpose(0, 3, 1, 2)), path / "images_best.pt")
  torch.save(labels.long() if dataset.label_kind == "hard" else labels, path / "labels_best.pt")
  if dataset.lr is not None:
    torch.save(torch.tensor(dataset.lr), path / "lr_best.pt")


def _tensor(x: np.ndarray) -> Any:
  return _torch().from_numpy(np.ascontiguousarray(x))


def _read_sre2l(path, shape):
  from PIL import Image, UnidentifiedImageError

  folders = sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
  found = [
    (file, c)
    for c, folder in enumerate(folders)
    for file in sorted(folder.iterdir())
    if file.suffix.lower() in PICTURES
  ]
  if not found:
    raise ConfigError(f"{path} has no folders with {', '.join(PICTURES)} files.")
  mode = "L" if shape[-1] == 1 else "RGB"
  images = []
  for file, _ in found:
    try:
      with Image.open(file) as picture:
        if picture.size != (shape[1], shape[0]):  # before it is decoded
          raise ConfigError(f"{file} is {picture.size}, images are {(shape[1], shape[0])}.")
        pixels = np.asarray(picture.convert(mode), np.float32)
    except (UnidentifiedImageError, OSError) as error:
      raise ConfigError(f"{file} is not a whole picture ({error}).") from None
    images.append(pixels.reshape(shape) / 127.5 - 1)
  return np.stack(images), np.array([c for _, c in found]), None


def _write_sre2l(path, dataset):
  from PIL import Image

  pixels = preprocessing.invert(dataset.preprocessing, dataset.images)
  bytes_ = np.round(np.clip(pixels * 127.5 + 127.5, 0, 255)).astype(np.uint8)
  label = classes_of(dataset)
  for c in range(int(label.max()) + 1):
    folder = path / f"new{c:03d}"
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(bytes_[label == c]):
      picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
      picture.save(folder / f"class{c:03d}_id{i:03d}.png")


LAYOUTS = dict(
  vico=(_read_vico, _write_vico), mtt=(_read_mtt, _write_mtt), sre2l=(_read_sre2l, _write_sre2l)
)
