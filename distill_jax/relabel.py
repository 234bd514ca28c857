"""A teacher labels every view that trainings will have of a distilled set (data/soft_labels.py).

  python -m distill_jax.relabel --set FOLDER --teacher FOLDER --epochs 300 --out FOLDER
    [--mix cutmix] [--no-flip] [--least 0.08] [--k 32] [--bits 8] [--seed 0] [--batch 100]
    [--process 0 --processes 4]

The set is a folder of distilled/artifact.py, the teacher one of distill_jax.export that takes the
set's preprocessing. Interrupted, the same command goes on. Several processes, on any machines that
share the folder, write every n-th epoch each.
"""

import argparse
import hashlib
import json
import pathlib
import sys
from typing import Any

from ml_collections import ConfigDict

from distill_jax import method as method_lib
from distill_jax.config import ConfigError
from distill_jax.data import soft_labels, views
from distill_jax.distilled import artifact
from distill_jax.models import pretrained


def teacher(folder: str) -> tuple[soft_labels.Apply, Any, int, str]:
  """(params, images) to logits, params, the number of classes, and a digest of the weights, from a
  model folder.

  Raises:
    ConfigError: no model, or one that is no classifier of images.
  """
  found = pretrained.folder(folder)
  given = json.loads((found / "config.json").read_text())
  if "num_classes" not in given or "name" not in given:
    raise ConfigError(f"{found} is no classifier of images: its config.json has no num_classes.")
  model, params = method_lib.load("models", given["name"]), pretrained.load(folder)
  arch = ConfigDict(model.default_config().to_dict() | given)  # a folder has no dtype
  digest = hashlib.sha256((found / "model.safetensors").read_bytes()).hexdigest()
  return lambda params, x: model.apply(arch, params, x)[0], params, arch.num_classes, digest


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog="python -m distill_jax.relabel", allow_abbrev=False)
  parser.add_argument("--set", required=True, type=pathlib.Path)
  parser.add_argument("--teacher", required=True)
  parser.add_argument("--epochs", required=True, type=int)
  parser.add_argument("--out", required=True, type=pathlib.Path)
  parser.add_argument("--mix", default="cutmix", choices=views.MIXES)
  parser.add_argument("--no-flip", dest="flip", action="store_false")
  parser.add_argument("--least", default=0.08, type=float, help="area of a crop, at least")
  parser.add_argument("--k", default=soft_labels.K, type=int, help="classes that are kept")
  parser.add_argument("--bits", default=soft_labels.BITS, type=int, help="of a log-probability")
  parser.add_argument("--seed", default=0, type=int, help="of the views")
  parser.add_argument("--batch", default=100, type=int, help="images at once")
  parser.add_argument("--process", default=0, type=int)
  parser.add_argument("--processes", default=1, type=int)
  args = parser.parse_args(argv)
  try:
    if not 0 <= args.process < args.processes:
      raise ConfigError(f"--process {args.process} is not one of --processes {args.processes}.")
    images = artifact.load(args.set).images
    apply, params, classes, digest = teacher(args.teacher)
    views_of = dict(least=args.least, flip=args.flip, mix=args.mix, seed=args.seed)
    fields = soft_labels.describe(
      images,
      classes=classes,
      epochs=args.epochs,
      k=args.k,
      bits=args.bits,
      teacher=digest,
      **views_of,
    )
    soft_labels.write(
      args.out,
      fields,
      images,
      apply,
      params,
      batch_size=args.batch,
      process=args.process,
      processes=args.processes,
    )
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  size = sum(file.stat().st_size for file in args.out.glob("*.arrayrecord"))
  print(f"{args.out}: {len(images)} images, {args.epochs} epochs, {size / 1e6:.2f} MB")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
