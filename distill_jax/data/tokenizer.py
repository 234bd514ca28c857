"""Tokenizers: raw bytes, a `tokenizer.json`, a SentencePiece `tokenizer.model`, or that of a GGUF
file. All know how many bytes of text each token stands for.

Train the byte-pair encoding of the models that ship with the project:

  python -m distill_jax.data.tokenizer --source stdlib --vocab_size 2048 --out
  distill_jax/assets/stdlib_teacher
"""

import argparse
import functools
import hashlib
import json
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from distill_jax.config import ROOT, ConfigError
from distill_jax.data import chat

END = "<|endoftext|>"
_FILES = ("tokenizer.json", "tokenizer.model")  # of a folder, the first that is there
_SETTINGS = ("tokenizer_config.json", "generation_config.json", "chat_template.jinja")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>$")


class Tokenizer(NamedTuple):
  """`encode` takes a list of texts; `<|endoftext|>` in one is text, unless special=True, which is
  for chats. `token_bytes` [V] counts the bytes of text in each token, 0 for special ones."""

  encode: Callable[..., list[np.ndarray]]  # (texts, special=False) -> int32[length] of each
  decode: Callable[[Sequence[int]], str]
  vocab_size: int
  end: int  # the id that ends a document
  token_bytes: np.ndarray
  fingerprint: str  # changes when the tokenizer does
  begin: int | None = None  # the id that the model wants in front of every text
  # (messages, add_generation_prompt=False) -> text; messages are dicts with role and content
  chat: Callable[..., str] | None = None


def load(name: str) -> Tokenizer:
  """`bytes`, a tokenizer.json, a tokenizer.model, a .gguf, or a folder that holds one. Each version
  of a file is read once.

  Raises:
    ConfigError: there is none, it can't be read, or it names no token that ends a document.
  """
  if name == "bytes":
    return _bytes()
  path = file(name)
  if path is None:
    raise ConfigError(f"No tokenizer at {name!r}: give 'bytes', a tokenizer.json or its folder.")
  stat = path.stat()
  return _load(path, stat.st_mtime_ns, stat.st_size)


def file(name: str) -> pathlib.Path | None:
  """The file that holds a tokenizer, relative to here or to the project."""
  for path in (pathlib.Path(name).expanduser(), ROOT / name):
    if path.is_dir():
      found = next((path / name for name in _FILES if (path / name).is_file()), None)
      if found:
        return found
    elif path.is_file():
      return path
  return None


def save(name: str, out: pathlib.Path) -> None:
  """Puts the tokenizer `name`, with the settings and the chat template beside it, into a folder
  that `load` reads as the same. Files that are there stay; `bytes` has none."""
  path = file(name)
  if path is None:
    return
  out.mkdir(parents=True, exist_ok=True)
  if path.suffix != ".gguf":
    for beside in (*_FILES, *_SETTINGS, "special_tokens_map.json"):
      if (path.parent / beside).is_file() and not (out / beside).exists():
        shutil.copyfile(path.parent / beside, out / beside)
    return
  from distill_jax.data import gguf_tokenizer
  from distill_jax.models import gguf_file

  metadata = gguf_file.parse(path).metadata
  tokens = metadata["tokenizer.ggml.tokens"]
  settings: dict[str, str | bool | None] = dict(tokenizer_class="PreTrainedTokenizerFast")
  for key in ("bos", "eos", "unknown", "padding"):
    number = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if number is not None:
      settings[f"{dict(unknown='unk', padding='pad').get(key, key)}_token"] = tokens[number]
  settings["add_bos_token"] = bool(metadata.get("tokenizer.ggml.add_bos_token"))
  settings["chat_template"] = metadata.get("tokenizer.chat_template")
  (out / "tokenizer.json").write_text(gguf_tokenizer.build(path, metadata).to_str())
  (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


@functools.lru_cache(maxsize=8)
def _load(path: pathlib.Path, mtime: int, size: int) -> Tokenizer:
  if path.suffix == ".model":
    return _sentencepiece(path)
  if path.suffix == ".gguf":
    from distill_jax.data import gguf_tokenizer
    from distill_jax.models import gguf_file

    metadata = gguf_file.parse(path).metadata
    rust = gguf_tokenizer.build(path, metadata)
    stored = {key.removeprefix("tokenizer."): value for key, value in metadata.items()}
    begin, end = (stored.get(f"ggml.{key}_token_id") for key in ("bos", "eos"))
    begin = begin if stored.get("ggml.add_bos_token") else None
    return _of_rust(path, rust, rust.to_str(), begin, end, stored.get("chat_template"))
  from tokenizers import Tokenizer as Rust

  text = path.read_text()
  try:
    rust = Rust.from_str(text)
  except Exception as error:  # the library raises nothing narrower
    raise ConfigError(f"{path} is not a tokenizer.json: {error}.") from None
  stored, template = chat.settings(path.parent)
  begin, end = (chat.token_id(stored, key, rust.token_to_id) for key in ("bos", "eos"))
  if begin not in rust.encode("").ids and stored.get("add_bos_token") is not True:
    begin = None  # the tokenizer puts nothing in front
  return _of_rust(path, rust, text, begin, end, template)


def _of_rust(path, rust, text, begin, end, template) -> Tokenizer:
  end = rust.token_to_id(END) if end is None else end
  if end is None:
    raise ConfigError(f"{path} has no {END!r} token to end documents with.")
  size = rust.get_vocab_size()
  ids = rust.get_vocab()
  pieces = [""] * size
  for piece, i in ids.items():
    pieces[i] = piece
  added = rust.get_added_tokens_decoder()
  special = {i for i, token in added.items() if token.special}
  fallback = getattr(rust.model, "byte_fallback", False)
  byte_level = "ByteLevel" in repr((rust.pre_tokenizer, rust.decoder))

  def count(i, piece):
    if i in special:
      return 0
    if fallback and _BYTE.match(piece):
      return 1
    if byte_level:  # such a vocabulary writes each byte as one printable character
      return len(piece.encode()) if i in added else len(piece)
    return len(piece.replace("▁", " ").encode())

  def encode(texts, special=False):
    rust.encode_special_tokens = not special
    encoded = rust.encode_batch(list(texts), add_special_tokens=False)
    return [np.array(e.ids, np.int32) for e in encoded]

  names = dict(bos_token=begin, eos_token=end)
  names = {key: "" if i is None else pieces[i] for key, i in names.items()}
  return Tokenizer(
    encode=encode,
    decode=lambda ids: rust.decode(list(ids)),
    vocab_size=size,
    end=end,
    token_bytes=np.array([count(i, piece) for i, piece in enumerate(pieces)], np.int32),
    fingerprint=hashlib.sha256(text.encode()).hexdigest(),
    begin=begin,
    chat=functools.partial(chat.render, path, template, names),
  )


def _sentencepiece(path: pathlib.Path) -> Tokenizer:
  """A tokenizer.model, by the library that made it."""
  try:
    import sentencepiece
  except ImportError:
    raise ConfigError(f"{path}: this needs: pip install 'distill_jax[pretrained]'.") from None
  try:
    model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
  except (RuntimeError, OSError) as error:
    reason = str(error).partition("\n")[0]
    raise ConfigError(f"{path} is not a SentencePiece model: {reason}.") from None
  stored, template = chat.settings(path.parent)
  end = chat.token_id(stored, "eos", model.piece_to_id)
  end = model.eos_id() if end is None else end
  if end < 0:
    raise ConfigError(f"{path} has no token to end documents with.")

  def count(i):
    if model.is_control(i) or model.is_unknown(i):
      return 0
    return 1 if model.is_byte(i) else len(model.id_to_piece(i).replace("▁", " ").encode())

  def encode(texts, special=False):
    if special:
      raise ConfigError(f"{path} knows no special tokens in texts: use a tokenizer.json for chats.")
    return [np.array(ids, np.int32) for ids in model.encode(list(texts))]

  size = model.get_piece_size()
  begin = model.bos_id() if model.bos_id() >= 0 and stored.get("add_bos_token", True) else None
  names = {"bos_token": model.id_to_piece(begin) if begin is not None else ""}
  return Tokenizer(
    encode=encode,
    decode=lambda ids: model.decode([int(i) for i in ids]),
    vocab_size=size,
    end=end,
    token_bytes=np.array([count(i) for i in range(size)], np.int32),
    fingerprint=hashlib.sha256(path.read_bytes()).hexdigest(),
    begin=begin,
    chat=functools.partial(
      chat.render, path, template, dict(names, eos_token=model.id_to_piece(end))
    ),
  )


@functools.cache
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
