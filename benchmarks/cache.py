"""What a token of a teacher cache costs, and what is lost of the teacher in it.

  python benchmarks/cache.py [--rows 128] [--json]

Two teachers: the one that ships with the project, of 2,048 tokens, on held-in text, and made-up
distributions over 128,256 tokens, as peaked as a large model's (a power law of ranks with noise, a
temperature for each token). For each k and each number of bits: bytes, KL(teacher || cached) with
the tail spread evenly over all other ids (`total`), and what of it comes from the coding: the KL
divergence on the K + 1 outcomes that are kept (`coding`). Raw storage is int32 ids and float32
log-probabilities; it loses what the choice of k loses. Then tokens per second of coding, of writing
(the teacher's forward pass included) and of reading through the data pipeline.

Measured on two cores of a CPU, with k 64 and 12 bits: 196 bytes per token of the shipped teacher
and 244 of the made-up one, where raw storage takes 512; coding adds 4e-8 and 6e-8 nats to the 0.187
and 0.210 that leaving out all but 64 ids costs (8 bits: 212 bytes and 1e-5; 16 bits: 276 and
2e-10). 198.0 bytes per token are on the disk. Idle: 373,000 tokens/s to bytes and 558,000 back,
13,900 written with the teacher, 338,000 read.
"""

import argparse
import contextlib
import io
import json
import pathlib
import shutil
import tempfile
import time

import jax
import numpy as np

from distill_jax import cache as writer
from distill_jax import config as config_lib
from distill_jax import train
from distill_jax.data import cached, manifest, signals
from distill_jax.mesh import make_mesh
from distill_jax.models import pretrained as pretrained_lib
from distill_jax.models import student as student_lib


def shipped(config, rows: np.ndarray) -> np.ndarray:
  """log-probabilities [N, V] of the teacher on the targets of some rows, in float64."""
  model = student_lib.model(config, "teacher")
  params = pretrained_lib.load(config.pretrained.teacher)
  hidden = jax.jit(model.hidden)(params, rows[:, :-1])
  return _normalised(np.asarray(model.logits(params, hidden), np.float64).reshape(-1, 2048))


def made_up(tokens: int, vocabulary: int = 128_256) -> np.ndarray:
  rng = np.random.default_rng(0)
  logits = -1.2 * np.log(np.arange(1, vocabulary + 1)) + rng.normal(size=(tokens, vocabulary))
  logits = rng.permuted(logits, axis=1) * rng.uniform(0.9, 2.5, size=(tokens, 1))
  return _normalised(logits)


def _normalised(logits: np.ndarray) -> np.ndarray:
  logits = logits - logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def quality(log_p: np.ndarray, k: int, bits: int, seq_len: int) -> dict:
  """Bytes and divergences of one form, and the seconds that coding takes."""
  count, vocabulary = log_p.shape
  layout = signals.Layout("top_k", k, bits, vocabulary, seq_len, "", 0)
  ids = np.argpartition(-log_p, k, axis=-1)[:, :k]
  ids = np.take_along_axis(ids, np.argsort(-np.take_along_axis(log_p, ids, -1), axis=-1), -1)
  kept = np.take_along_axis(log_p, ids, -1)
  parts = [(ids[i : i + seq_len], kept[i : i + seq_len]) for i in range(0, count, seq_len)]
  begun = time.perf_counter()
  records = [signals.encode(layout, a, b.astype(np.float32), None) for a, b in parts]
  encoded = time.perf_counter()
  found = [signals.decode(layout, record)["teacher_log_probs"] for record in records]
  decoded = time.perf_counter()
  coded = np.concatenate(found).astype(np.float64)
  p, tail = np.exp(kept), 1 - np.exp(kept).sum(-1)
  left = np.maximum(1 - np.exp(coded).sum(-1), 1e-7)
  coding = (p * (kept - coded)).sum(-1) + tail * np.log(np.maximum(tail, 1e-300) / left)
  every = np.exp(log_p) * log_p
  rest = every.sum(-1) - (p * kept).sum(-1) - tail * np.log(left / (vocabulary - k))
  return dict(
    vocabulary=vocabulary,
    k=k,
    bits=bits,
    bytes=signals.size(layout) / seq_len,
    raw_bytes=8 * k,
    tail=float(tail.mean()),
    coding=float(coding.mean()),
    total=float(((p * (kept - coded)).sum(-1) + rest).mean()),
    encode_tokens_per_s=count / (encoded - begun),
    decode_tokens_per_s=count / (decoded - encoded),
  )


def speed(config) -> dict:
  """Tokens per second of the writer and of the reader, and bytes per token on the disk."""
  cache = manifest.of(config)
  tokens = cache.rows * config.data.seq_len
  with jax.set_mesh(make_mesh(config.mesh)), contextlib.redirect_stdout(io.StringIO()):
    for _ in range(2):  # the second time the programs are compiled
      shutil.rmtree(cache.folder, ignore_errors=True)
      begun = time.perf_counter()
      writer.write(config, cache)
      written = time.perf_counter() - begun
  batches, steps = iter(cached.make(config)), cache.rows // config.batch_size
  next(batches)
  begun = time.perf_counter()
  for _ in range(steps):
    next(batches)
  read = time.perf_counter() - begun
  return dict(
    tokens=tokens,
    write_tokens_per_s=tokens / written,
    read_tokens_per_s=steps * config.batch_size * config.data.seq_len / read,
    bytes_on_disk=sum(file.stat().st_size for file in cache.files) / tokens,
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rows", type=int, default=128, help="of 256 tokens, to write and to read")
  parser.add_argument("--json", action="store_true", help="one line of JSON at the end")
  args = parser.parse_args()
  cells = []
  with tempfile.TemporaryDirectory() as folder:
    config = config_lib.load("experiments/llm/cached_kd.py")
    config.data.cache.rows = args.rows
    train.enable_compilation_cache(folder)
    config.data.cache.folder = str(pathlib.Path(folder) / "cache")
    cache = manifest.of(config)
    rows = np.stack([cache.example(i)["tokens"] for i in range(8)])
    for log_p in (shipped(config, rows), made_up(512)):
      for k, bits in ((8, 12), (16, 12), (32, 12), (64, 8), (64, 12), (64, 16), (128, 12)):
        cells.append(quality(log_p, k, bits, 256))
    rates = speed(config)
  print("vocabulary    k bits  bytes    raw     tail     coding   total")
  for c in cells:
    print(
      f"{c['vocabulary']:10,} {c['k']:4} {c['bits']:4} {c['bytes']:6.1f} {c['raw_bytes']:6}"
      f" {c['tail']:8.1e}  {c['coding']:8.1e} {c['total']:7.4f}"
    )
  own = next(c for c in cells[7:] if (c["k"], c["bits"]) == (64, 12))
  print(f"coding, tokens/s: {own['encode_tokens_per_s']:,.0f}", end=" to bytes, ")
  print(f"{own['decode_tokens_per_s']:,.0f} back (k 64, 12 bits, vocabulary 128,256)")
  print(f"shipped teacher, k 64: written {rates['write_tokens_per_s']:,.0f} tokens/s", end=", ")
  print(f"read {rates['read_tokens_per_s']:,.0f}", end=", ")
  print(f"{rates['bytes_on_disk']:.1f} bytes per token on disk")
  if args.json:
    print(json.dumps(dict(cells=cells, speed=rates)))


if __name__ == "__main__":
  main()
