"""The tokenizer inside a GGUF file, as one of the `tokenizers` library.

Two kinds: `llama` (SentencePiece's byte-pair encoding, as in Llama 2 and Gemma: pieces with scores,
"▁" for a space, <0xAB> for a byte) and `gpt2` (byte-level byte-pair encoding with merges, as in
GPT-2, Llama 3 and Qwen).
"""

import pathlib
from typing import Any

from distill_jax.config import ConfigError, did_you_mean

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6  # of tokenizer.ggml.token_type
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre: where a text is cut before merging; "" is GPT-2's rule, built into the library
SPLITS = {
  "gpt-2": "",
  "default": "",
  "qwen2": _WORDS % "",
  "llama-bpe": _WORDS % "{1,3}",
}


def build(path: pathlib.Path, metadata: dict[str, Any]):
  """A `tokenizers.Tokenizer`.

  Raises:
    ConfigError: the file has no tokenizer, or one of another kind.
  """
  kind = metadata.get("tokenizer.ggml.model")
  if kind not in ("llama", "gpt2"):
    raise ConfigError(f"{path}: tokenizer.ggml.model {kind!r} is neither 'llama' nor 'gpt2'.")
  tokens = metadata.get("tokenizer.ggml.tokens") or []
  types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
  if not tokens or len(types) != len(tokens) or len(set(tokens)) != len(tokens):
    raise ConfigError(f"{path}: its list of tokens is empty, has repeats, or lacks types.")
  rust = (
    _sentencepiece(path, metadata, tokens, types) if kind == "llama" else _bytes(path, metadata)
  )
  from tokenizers import AddedToken

  unknown = metadata.get("tokenizer.ggml.unknown_token_id")
  special = [t for i, t in enumerate(tokens) if types[i] == CONTROL or i == unknown]
  # a run of spaces is stored as such, and met as a run of "▁"
  space = "▁" if kind == "llama" else " "
  words = [t.replace(" ", space) for t, n in zip(tokens, types, strict=True) if n == USER_DEFINED]
  rust.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
  rust.add_tokens([AddedToken(t, special=False, normalized=True) for t in words])
  begin = metadata.get("tokenizer.ggml.bos_token_id")
  if begin is not None and metadata.get("tokenizer.ggml.add_bos_token"):
    from tokenizers.processors import TemplateProcessing

    name = tokens[begin]
    rust.post_processor = TemplateProcessing(f"{name} $A", special_tokens=[(name, begin)])
  return rust


def _sentencepiece(path, metadata, tokens, types):
  """Byte-pair encoding that joins, of all neighbours that make a piece, the best-scored first."""
  from tokenizers import Tokenizer, decoders, models, normalizers

  scores = metadata.get("tokenizer.ggml.scores") or []
  if len(scores) != len(tokens):
    raise ConfigError(f"{path}: {len(tokens)} tokens, but {len(scores)} scores.")
  pieces = [
    token.replace(" ", "▁") if n == USER_DEFINED else token
    for token, n in zip(tokens, types, strict=True)
  ]
  ids = {piece: i for i, piece in enumerate(pieces)}
  plain = [i for i, n in enumerate(types) if n in (1, USER_DEFINED)]
  merges = []
  for i in sorted(plain, key=lambda i: -scores[i]):
    piece = pieces[i]
    parts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
    found = [p for p in parts if p[0] in ids and p[1] in ids]
    merges += sorted(found, key=lambda p: (ids[p[0]], ids[p[1]]))
  unknown = metadata.get("tokenizer.ggml.unknown_token_id")
  rust = Tokenizer(
    models.BPE(
      ids,
      merges,
      byte_fallback=BYTE in types,
      unk_token=None if unknown is None else tokens[unknown],
      fuse_unk=True,
    )
  )
  replace: normalizers.Normalizer = normalizers.Replace(" ", "▁")
  decode = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  if metadata.get("tokenizer.ggml.add_space_prefix", True):
    replace = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    decode.append(decoders.Strip(" ", 1, 0))
  rust.normalizer, rust.decoder = replace, decoders.Sequence(decode)
  return rust


def _bytes(path, metadata):
  from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

  pre = metadata.get("tokenizer.ggml.pre", "default")
  if pre not in SPLITS:
    raise ConfigError(f"{path}: unknown tokenizer.ggml.pre {pre!r}." + did_you_mean(pre, SPLITS))
  merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges") or []]
  ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
  try:
    model = models.BPE(ids, merges, ignore_merges=pre == "llama-bpe")
  except Exception as error:  # the library raises nothing narrower
    raise ConfigError(f"{path}: tokenizer.ggml.merges: {error}.") from None
  rust = Tokenizer(model)
  cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not SPLITS[pre])
  if SPLITS[pre]:
    words = pre_tokenizers.Split(Regex(SPLITS[pre]), "isolated")
    rust.pre_tokenizer = pre_tokenizers.Sequence([words, cut])
  else:
    rust.pre_tokenizer = cut
  if pre == "qwen2":
    rust.normalizer = normalizers.NFC()
  rust.decoder = decoders.ByteLevel()
  return rust
