"""A trained model out of a run, as a folder that `config.pretrained` takes; with `--format
huggingface` one that transformers loads too.

python -m distill_jax.export --workdir runs/kd --out my_student [--tree student] [--dtype bfloat16]
  [--format huggingface]
"""

import argparse
import pathlib
import sys
from collections.abc import Callable

import jax

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax import train
from distill_jax.checkpoint import Checkpoints
from distill_jax.config import ConfigError
from distill_jax.data import tokenizer
from distill_jax.mesh import make_mesh
from distill_jax.models import adapters, huggingface, lora, pretrained

FORMATS: dict[str, Callable] = dict(distill_jax=pretrained.save, huggingface=huggingface.save)


def export(
  workdir: pathlib.Path, out: pathlib.Path, *, tree: str, dtype: str, format: str = "distill_jax"
) -> int:
  """Writes `state[tree]` of the latest checkpoint, of the first seed where there are several; a
  dotted tree names a part, such as ema.constant_0.999.

  Returns:
    The step that the parameters are from.

  Raises:
    ConfigError: there is no checkpoint or no such tree, or no family of Hugging Face's has the
      student's architecture.
  """
  config = config_lib.load_saved(workdir)
  mesh = make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    program = train.build(config, mesh)
    data = iter(method_lib.load("data", config.data.name).make(config))
    with Checkpoints(
      workdir / "checkpoints", every=config.save_every, keep=config.keep
    ) as checkpoints:
      state = checkpoints.restore(program.abstract[0], data)
  if state is None:
    raise ConfigError(f"{workdir} has no usable checkpoint.")
  params = state
  for key in tree.split(".", 1):
    if key not in params:
      raise ConfigError(f"The state has no {tree!r}." + config_lib.did_you_mean(key, params))
    params = params[key]
  if "name" in config.models.student:  # no transformer: a network, a classifier
    if config.seeds > 1:
      params = jax.tree.map(lambda x: x[0], params)
    if "factors" in params:
      params = adapters.merge(params["base"], params["factors"])
    pretrained.save(out, jax.device_get(params), config.models.student, dtype)
    return int(state["step"])
  arch = pretrained.architecture(config, "student")
  if arch.lora_rank and tree.split(".")[0] in ("student", "ema"):
    params = lora.merged(params, arch)
  FORMATS[format](out, jax.device_get(params), arch, dtype)
  tokenizer.save(config.data.tokenizer, out)
  return int(state["step"])


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog="python -m distill_jax.export", allow_abbrev=False)
  parser.add_argument("--workdir", required=True, type=pathlib.Path)
  parser.add_argument("--out", required=True, type=pathlib.Path)
  parser.add_argument("--tree", default="student")
  parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
  parser.add_argument("--format", default="distill_jax", choices=FORMATS)
  args = parser.parse_args(argv)
  try:
    step = export(args.workdir, args.out, tree=args.tree, dtype=args.dtype, format=args.format)
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(f"{args.out}: {args.tree} of step {step} in {args.dtype}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
