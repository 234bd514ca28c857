"""Tokenizers: raw bytes, or a `tokenizer.json`; both know how many bytes of text each token stands
for.

Train the byte-pair encoding of the models that ship with the project:

  python -m distill_jax.data.tokenizer --source stdlib --vocab_size 2048 --out
  distill_jax/assets/stdlib_teacher
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from distill_jax.config import ROOT, ConfigError

END = "<|endoftext|>"


class Tokenizer(NamedTuple):
  """`encode` takes a list of texts; `token_bytes` [V] counts the bytes of text in each token, 0 for
  special ones."""

  encode: Callable[[Sequence[str]], list[np.ndarray]]
  decode: Callable[[Sequence[int]], str]
  vocab_size: int
  end: int  # the id that ends a document
  token_bytes: np.ndarray
  fingerprint: str  # changes when the tokenizer does


def load(name: str) -> Tokenizer:
  """`bytes`, a tokenizer.json, or a folder that holds one."""
  if name == "bytes":
    return _bytes()
  path = next((p for p in (pathlib.Path(name), ROOT / name) if p.exists()), None)
  if path is not None and path.is_dir():
    path = path / "tokenizer.json"
  if path is None or not path.is_file():
    raise ConfigError(f"No tokenizer at {name!r}: give 'bytes', a tokenizer.json or its folder.")
  from tokenizers import Tokenizer as Rust

  text = path.read_text()
  try:
    rust = Rust.from_str(text)
  except Exception as error:  # the library raises nothing narrower
    raise ConfigError(f"{path} is not a tokenizer.json: {error}.") from None
  rust.encode_special_tokens = True  # "<|endoftext|>" in a text is text
  end = rust.token_to_id(END)
  if end is None:
    raise ConfigError(f"{path} has no {END!r} token to end documents with.")
  pieces = [rust.id_to_token(i) or "" for i in range(rust.get_vocab_size())]
  special = {i for i, token in rust.get_added_tokens_decoder().items() if token.special}
  # a byte-level vocabulary writes each byte as one printable character
  token_bytes = np.array([0 if i in special else len(p) for i, p in enumerate(pieces)], np.int32)
  return Tokenizer(
    encode=lambda texts: [
      np.array(e.ids, np.int32) for e in rust.encode_batch(list(texts), add_special_tokens=False)
    ],
    decode=lambda ids: rust.decode(list(ids)),
    vocab_size=rust.get_vocab_size(),
    end=end,
    token_bytes=token_bytes,
    fingerprint=text,
  )


def _bytes() -> Tokenizer:
  return Tokenizer(
    encode=lambda texts: [np.frombuffer(t.encode(), np.uint8).astype(np.int32) for t in texts],
    decode=lambda ids: bytes(i for i in ids if i < 256).decode(errors="replace"),
    vocab_size=257,
    end=256,
    token_bytes=np.array([1] * 256 + [0], np.int32),
    fingerprint="bytes",
  )


def main() -> None:
  from tokenizers import Tokenizer as Rust
  from tokenizers import decoders, models, pre_tokenizers, trainers

  from distill_jax.data import text

  parser = argparse.ArgumentParser(description="Trains a byte-level BPE on a text source.")
  parser.add_argument("--source", default="stdlib")
  parser.add_argument("--vocab_size", type=int, default=2048)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  args = parser.parse_args()
  rust = Rust(models.BPE())
  # digits one by one; a word takes the space before it; runs of white space stay whole, for
  # indentation
  rust.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  rust.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=args.vocab_size,
    special_tokens=[END],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  documents = [t for name, t in text.documents(args.source, "text") if not text.held_out(name)]
  rust.train_from_iterator(documents, trainer)
  args.out.mkdir(parents=True, exist_ok=True)
  rust.save(str(args.out / "tokenizer.json"), pretty=False)
  ids = sum(len(e.ids) for e in rust.encode_batch(documents))
  size = sum(len(d.encode()) for d in documents)
  print(f"{rust.get_vocab_size()} tokens, {size / ids:.2f} bytes each on {size:,} bytes of text")


if __name__ == "__main__":
  try:
    main()
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
