"""Text that a model writes after prompts of the training text, as lines that `data.completions`
reads.

  python -m distill_jax.generate --config experiments/llm/seqkd.py --out written.jsonl --rows 1000
  [--model teacher] [--config.key=value ...]

Each line is {"prompt", "completion"}: the first `method.prompt` tokens of a row, and what the model
sampled after them at `method.temperature`. An interrupted file is continued after its last whole
line, with the same text. Students of this text are `llm.sft` with data.name=completions.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator

import jax
import numpy as np

from distill_jax import train
from distill_jax.config import ConfigError
from distill_jax.data import text, tokenizer
from distill_jax.mesh import make_mesh, put_batch, shardings
from distill_jax.models import pretrained as pretrained_lib
from distill_jax.models import student as student_lib
from distill_jax.report import Bar


def generate(config, out: pathlib.Path, *, rows: int, name: str = "teacher") -> int:
  """Writes `rows` lines, rounded up to whole batches; returns how many were there already."""
  path = config.pretrained[name]
  if not path:
    raise ConfigError(f"pretrained.{name} names no model, and a random one has nothing to say.")
  tokens = tokenizer.load(student_lib.tokenizer_of(config, name))
  done = _whole_lines(out)
  mesh = make_mesh(config.mesh)
  bar = Bar(out.name, done, rows)
  with jax.set_mesh(mesh), bar.progress, out.open("a") as file:
    model, key = student_lib.model(config, name), jax.random.key(config.seed)
    loaded = {name: pretrained_lib.load(path)}
    loaded = pretrained_lib.put(loaded, shardings(loaded, config.sharding.frozen, mesh))
    params = jax.jit(lambda tree: student_lib.params(config, name, key, tree))(loaded)
    write = jax.jit(lambda p, b, k: student_lib.write(config, model, p, b, k))
    for i, batch in enumerate(_batches(config, rows)):
      if (i + 1) * config.batch_size <= done:
        continue
      written = jax.device_get(write(params, put_batch(batch, mesh), jax.random.fold_in(key, i)))
      for row, (ids, mask) in enumerate(zip(written["tokens"], written["mask"], strict=True)):
        if i * config.batch_size + row < done:
          continue
        prompt, completion = ids[: config.method.prompt], ids[1:][mask]
        line = dict(prompt=tokens.decode(prompt), completion=tokens.decode(completion))
        file.write(json.dumps(line) + "\n")
      file.flush()
      bar.progress.update(bar.task, completed=(i + 1) * config.batch_size, text="")
  return done


def _batches(config, rows: int) -> Iterator[dict[str, np.ndarray]]:
  """The training rows in order, spread over the text."""
  every = text.rows(config, "train")
  if rows > len(every):
    raise ConfigError(f"--rows {rows}: the training text has {len(every)} rows.")
  chosen = np.linspace(0, len(every) - 1, -(-rows // config.batch_size) * config.batch_size)
  for batch in chosen.astype(int).reshape(-1, config.batch_size):
    examples = [text.example(every[i]) for i in batch]
    yield {k: np.stack([e[k] for e in examples]) for k in examples[0]}


def _whole_lines(path: pathlib.Path) -> int:
  """How many whole lines a file has; half a line at its end, of a killed writer, is cut off."""
  if not path.exists():
    return 0
  content = path.read_bytes()
  whole = content[: content.rfind(b"\n") + 1]
  if len(whole) < len(content):
    path.write_bytes(whole)
  return whole.count(b"\n")


def main(argv: list[str]) -> int:
  arguments = argparse.ArgumentParser(prog="python -m distill_jax.generate", allow_abbrev=False)
  arguments.add_argument("--out", required=True, type=pathlib.Path)
  arguments.add_argument("--rows", required=True, type=int)
  arguments.add_argument("--model", default="teacher", choices=("teacher", "student"))
  try:
    parsed, config = train.command_line(arguments, argv)
    train.enable_compilation_cache(config.cache_dir)
    done = generate(config, parsed.out, rows=parsed.rows, name=parsed.model)
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(f"{parsed.out}: {_whole_lines(parsed.out):,} lines, {done:,} of them from before")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
