"""A smaller model cut out of a trained one, as a folder that `config.pretrained` takes.

python -m distill_jax.prune --model MODEL --out FOLDER [--layers 12 | --keep 0,1,4,17]
  [--mlp_width 1024] [--heads 8] [--width 512] [--source stdlib] [--rows 16]

MODEL is what config.pretrained takes: a folder of ours or of Hugging Face, or a .gguf file. What
matters least on some rows of the source's text goes; --keep names the layers instead.
"""

import argparse
import pathlib
import sys

import jax
import numpy as np

from distill_jax.config import ConfigError
from distill_jax.data import text, tokenizer
from distill_jax.models import pretrained, transformer
from distill_jax.models import prune as prune_lib

ROW = 256  # tokens
BATCH = 4  # rows at a time


def prune(args: argparse.Namespace) -> str:
  """Writes the folder; returns a line about it."""
  arch = pretrained.read_architecture(args.model)
  if args.keep and not all(0 <= i < arch.layers for i in args.keep):
    raise ConfigError(f"--keep takes numbers of layers from 0 to {arch.layers - 1}.")
  params = pretrained.read(pretrained.load(args.model))
  params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
  before = sum(x.size for x in jax.tree.leaves(params))
  found = _importance(args, arch, params)
  print("influence of the layers:", " ".join(f"{x:.3f}" for x in found.layers))
  try:
    kept = args.keep or prune_lib.ranked(found.layers, args.layers or arch.layers).tolist()
    params, arch = prune_lib.keep_layers(params, arch, kept)
    if args.mlp_width:
      params, arch = prune_lib.drop_units(params, arch, found.units[kept], args.mlp_width)
    if args.heads:
      params, arch = prune_lib.drop_heads(params, arch, found.heads[kept], args.heads)
    if args.width:
      params, arch = prune_lib.drop_channels(params, arch, found.channels, args.width)
  except ValueError as error:
    raise ConfigError(f"{args.model}: {error}.") from None
  pretrained.save(args.out, params, arch, args.dtype)
  tokenizer.save(args.tokenizer or args.model, args.out)
  after = sum(x.size for x in jax.tree.leaves(params))
  return f"{args.out}: layers {kept}, {after:,} of {before:,} parameters, in {args.dtype}"


def _importance(args, arch, params) -> prune_lib.Importance:
  """Means over rows of the source's training text, evenly spread."""
  words = tokenizer.load(args.tokenizer or args.model)
  model = transformer.make(arch)
  texts = [t for name, t in text.documents(args.source, "text") if not text.held_out(name)]
  rows = []
  for document in words.encode([t[: 16 * ROW] for t in texts if len(t) > 8 * ROW]):
    row = document[:ROW] if words.begin is None else np.append(words.begin, document)[:ROW]
    rows += [row] if len(row) == ROW else []
  if len(rows) < args.rows:
    raise ConfigError(f"--source {args.source!r} has {len(rows)} documents of {ROW} tokens.")
  spread = np.linspace(0, len(rows) - 1, args.rows).astype(int)
  measure = jax.jit(lambda p, x: prune_lib.importance(model, p, arch, x))
  parts = [
    jax.device_get(measure(params, np.stack([rows[i] for i in spread[at : at + BATCH]])))
    for at in range(0, args.rows, BATCH)
  ]
  return jax.tree.map(lambda *x: np.mean(x, 0), *parts)


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog="python -m distill_jax.prune", allow_abbrev=False)
  parser.add_argument("--model", required=True)
  parser.add_argument("--out", required=True, type=pathlib.Path)
  parser.add_argument("--layers", type=int, default=0, help="how many stay; 0: all")
  numbers = lambda given: [int(i) for i in given.split(",")]  # noqa: E731
  parser.add_argument("--keep", type=numbers, default=[], help="numbers of those that stay, from 0")
  parser.add_argument("--mlp_width", type=int, default=0)
  parser.add_argument("--heads", type=int, default=0)
  parser.add_argument("--width", type=int, default=0)
  parser.add_argument("--tokenizer", default="", help="where the model comes with none")
  parser.add_argument("--source", default="stdlib")
  parser.add_argument(
    "--rows", type=int, default=16, help=f"of {ROW} tokens; a multiple of {BATCH}"
  )
  parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
  try:
    print(prune(parser.parse_args(argv)))
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
