"""The rows of `text.py` that a teacher models better than a small reference does.

  score = loss of the reference - loss of the teacher, means over the tokens of a row

Of `data.candidates` rows, spread evenly over the text (0: all rows), the share `data.keep` with the
highest scores is kept. The scores are computed at the first use and kept in the cache directory. A
run of several processes reads them only: compute them before, in one process, by

  python -m distill_jax.data.selection --config experiments/llm/miniplm.py [--config.key=value ...]

Gu, Zhou, Meng, Zhou, Huang, MiniPLM: Knowledge Distillation for Pre-Training Language Models
(arXiv:2410.17215), section 2.2, difference sampling; its code scores rows of 1024 tokens and keeps
half of them.
"""

import argparse
import hashlib
import os
import pathlib
import sys
import tempfile
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import config as config_lib
from distill_jax.config import ConfigError
from distill_jax.data import text
from distill_jax.losses.linear_divergence import linear_cross_entropy
from distill_jax.losses.tokens import difference_score, keep_top
from distill_jax.mesh import make_mesh, put_batch, shardings
from distill_jax.models import pretrained as pretrained_lib
from distill_jax.models import student as student_lib

MODELS = ("teacher", "reference")


def make(config) -> grain.IterDataset:
  """Shuffled rows without end, this process's share of each batch."""
  rows = candidates(config)
  if not 0 < config.data.keep <= 1:
    raise ConfigError(f"data.keep is a share in (0, 1], not {config.data.keep}.")
  kept = keep_top(jnp.asarray(scores(config, rows)), keep=max(1, int(config.data.keep * len(rows))))
  return text.shuffled(config, rows[np.asarray(kept)], text.example)


def spec(config) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of one global batch."""
  return text.spec(config)


def validation(config) -> list[dict[str, np.ndarray]]:
  """Rows of the held-out text, of which nothing is selected."""
  return text.validation(config)


def candidates(config) -> np.ndarray:
  """The rows that are scored: int32[N, T + 1]."""
  rows = text.rows(config, "train")
  count = min(config.data.candidates or len(rows), len(rows))
  return rows[np.linspace(0, len(rows) - 1, count).astype(int)]


def scores(config, rows: np.ndarray) -> np.ndarray:
  """The score of each row, float32[N], from the cache or computed now."""
  digest = hashlib.sha256(np.asarray(rows).tobytes())
  for name in MODELS:
    digest.update(_identity(config, name).encode())
  folder = pathlib.Path(config.cache_dir).expanduser() / "scores"
  cached = folder / f"{digest.hexdigest()[:32]}.npy"
  try:
    return np.load(cached)
  except (FileNotFoundError, ValueError, EOFError):  # absent, or damaged
    pass
  if jax.process_count() > 1:
    raise ConfigError(
      f"The rows have no scores in {folder}, which all processes must share: run python -m "
      "distill_jax.data.selection with this config first, in one process."
    )
  begun = time.monotonic()
  print(f"Scoring {len(rows):,} rows by teacher and reference, once", file=sys.stderr, flush=True)
  found = difference_score(*(jnp.asarray(losses(config, name, rows)) for name in MODELS))
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.NamedTemporaryFile(dir=folder, suffix=".npy", delete=False) as file:
    np.save(file, np.asarray(found))
  os.replace(file.name, cached)
  print(f"took {time.monotonic() - begun:.0f} s, kept in {cached}", file=sys.stderr)
  return np.asarray(found)


def losses(config, name: str, rows: np.ndarray) -> np.ndarray:
  """Mean cross-entropy of each row under a model, float32[N], in batches of `batch_size`."""
  model = student_lib.model(config, name)
  path = config.pretrained[name]
  pretrained = {name: pretrained_lib.read(pretrained_lib.load(path))} if path else {}
  mesh = jax.sharding.get_mesh()
  mesh = make_mesh(config.mesh) if mesh.empty else mesh

  @jax.jit
  def of_rows(params, tokens):
    hidden = student_lib.hidden(model, params, dict(tokens=tokens))
    options = dict(chunk=config.divergence.chunk, student=student_lib.head(model))
    return jnp.mean(linear_cross_entropy(hidden, model.head(params), tokens[:, 1:], **options), -1)

  with jax.set_mesh(mesh):
    params = student_lib.params(config, name, jax.random.key(MODELS.index(name)), pretrained)
    params = jax.device_put(params, shardings(params, config.sharding.frozen, mesh))
    values = []
    for first in range(0, len(rows), config.batch_size):
      part = rows[first : first + config.batch_size]
      full = np.pad(part, ((0, config.batch_size - len(part)), (0, 0)))
      values.append(np.asarray(of_rows(params, put_batch(full, mesh)))[: len(part)])
  return np.concatenate(values)


def _identity(config, name: str) -> str:
  """What changes when a model's numbers do."""
  path = config.pretrained[name]
  if not path:
    return f"{name} {config.models[name].to_json()}"
  found = pretrained_lib.folder(path).resolve()
  files = [found] if found.is_file() else sorted(found.glob("*.safetensors"))
  return " ".join([name, *(f"{f} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files)])


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(prog="python -m distill_jax.data.selection", allow_abbrev=False)
  parser.add_argument("--config", required=True, help="experiments/FAMILY/NAME.py[:arg,key=value]")
  parsed, rest = parser.parse_known_args(argv)
  config = config_lib.load(parsed.config, [a.removeprefix("--config.") for a in rest])
  found = scores(config, candidates(config))
  print(f"{len(found):,} rows, scores from {found.min():.3f} to {found.max():.3f} nats a token")


if __name__ == "__main__":
  try:
    main(sys.argv[1:])
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
