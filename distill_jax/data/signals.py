"""What a teacher thinks of the tokens of a row, as bytes and back.

A record holds, for each of the T targets of a row, one after the other and little-endian:

  top_k    float32 [T, 3]: the mass outside the ids, the lowest and the highest log-probability
           [T, K] ids, the likeliest first, packed to ceil(log2 V) bits each
           [T, K] log-probabilities in `bits` bits, evenly spaced from the lowest to the highest
  sampled  [T, K] ids drawn at random, each once, packed; then [T, K] how often each was drawn of K
           draws, packed; slots that are left over have count 0
  hidden   [T, D] the last hidden states in 2 bytes each, after either, where asked for

Each token's bits begin at a byte. Decoded log-probabilities are normalised in float64 to the mass
that the first field leaves them, so that rounding moves no mass in or out of the tail.
"""

from typing import Any, NamedTuple

import numpy as np

KINDS = ("top_k", "sampled")
DTYPES = ("", "float16", "bfloat16")  # of hidden states; "" keeps none
MOST_BITS = 24  # an entry and its offset in a byte fit in 32 bits


class Layout(NamedTuple):
  """What the size of a record follows from."""

  kind: str  # top_k | sampled
  k: int  # ids or draws of each token
  bits: int  # of a log-probability
  vocabulary: int
  seq_len: int  # T
  hidden: str  # dtype of hidden states, "" for none
  width: int  # D


def arrays(layout: Layout) -> dict[str, tuple[tuple[int, ...], Any]]:
  """Name -> shape and dtype of what `decode` returns of one row."""
  t, k = layout.seq_len, layout.k
  values = dict(top_k="teacher_log_probs", sampled="teacher_weights")[layout.kind]
  found: dict[str, tuple[tuple[int, ...], Any]] = {
    "teacher_ids": ((t, k), np.int32),
    values: ((t, k), np.float32),
  }
  if layout.hidden:
    found["teacher_hidden"] = ((t, layout.width), _dtype(layout.hidden))
  return found


def size(layout: Layout) -> int:
  """Bytes of a record."""
  ids, values = _entry_bits(layout)
  token = _packed_bytes(layout.k, ids) + _packed_bytes(layout.k, values)
  token += 12 if layout.kind == "top_k" else 0
  return layout.seq_len * (token + (2 * layout.width if layout.hidden else 0))


def encode(
  layout: Layout, ids: np.ndarray, log_probs: np.ndarray | None, hidden: np.ndarray | None
) -> bytes:
  """A record of one row.

  Args:
    ids: int [T, K], by falling probability (top_k), or draws in any order (sampled).
    log_probs: float [T, K] for top_k, over the whole vocabulary; not read for sampled.
    hidden: [T, D] where the layout asks for them.
  """
  id_bits, value_bits = _entry_bits(layout)
  if layout.kind == "top_k":
    assert log_probs is not None
    exact = log_probs.astype(np.float64)
    tail = np.maximum(0.0, 1.0 - np.exp(exact).sum(-1))
    low, high = (f(exact, -1).astype("<f4").astype(np.float64)[:, None] for f in (np.min, np.max))
    codes = np.rint((exact - low) / np.maximum(high - low, 1e-30) * (2**layout.bits - 1))
    values = np.clip(codes, 0, 2**layout.bits - 1).astype(np.uint32)
    head = np.concatenate([tail[:, None], low, high], -1).astype("<f4").tobytes()
  else:
    ids, values = _count(ids)
    head = b""
  parts = [head, _pack(ids, id_bits), _pack(values, value_bits)]
  if layout.hidden:
    assert hidden is not None
    parts.append(hidden.astype(_dtype(layout.hidden)).tobytes())
  return b"".join(parts)


def decode(layout: Layout, record: bytes) -> dict[str, np.ndarray]:
  """The arrays of a row: `teacher_ids` int32 [T, K] with `teacher_log_probs` float32 [T, K] (top_k)
  or `teacher_weights` float32 [T, K], counts over K (sampled); `teacher_hidden` [T, D].

  Raises:
    ValueError: the record is not one of this layout. Nothing is allocated by what it says.
  """
  t, k = layout.seq_len, layout.k
  if len(record) != size(layout):
    raise ValueError(f"it has {len(record)} bytes, not {size(layout)}")
  id_bits, value_bits = _entry_bits(layout)
  data, at = np.frombuffer(record, np.uint8), 0

  def take(count: int) -> np.ndarray:
    nonlocal at
    at += t * count
    return data[at - t * count : at].reshape(t, count)

  head = take(12).copy().view("<f4").astype(np.float64) if layout.kind == "top_k" else None
  ids = _unpack(take(_packed_bytes(k, id_bits)), k, id_bits).astype(np.int32)
  values = _unpack(take(_packed_bytes(k, value_bits)), k, value_bits)
  if ids.max() >= layout.vocabulary:
    raise ValueError(f"id {ids.max()} is outside the vocabulary of {layout.vocabulary}")
  if head is not None:
    found = dict(teacher_ids=ids, teacher_log_probs=_log_probs(head, values, layout.bits))
  else:
    if (values.sum(-1, dtype=np.int64) != k).any():
      raise ValueError(f"the counts of a token are not those of {k} draws")
    found = dict(teacher_ids=ids, teacher_weights=(values / k).astype(np.float32))
  if layout.hidden:
    states = take(2 * layout.width).copy().view(_dtype(layout.hidden))
    if not np.isfinite(states.astype(np.float32)).all():
      raise ValueError("a hidden state is not finite")
    found["teacher_hidden"] = states
  return found


def _log_probs(head: np.ndarray, codes: np.ndarray, bits: int) -> np.ndarray:
  tail, low, high = np.split(head, 3, axis=-1)
  good = np.isfinite(head).all() and ((tail >= 0) & (tail < 1) & (low <= high)).all()
  if not good:
    raise ValueError("a tail, a lowest or a highest log-probability is out of range")
  values = low - high + codes * ((high - low) / (2**bits - 1))  # the highest is 0
  total = np.log(np.exp(values).sum(-1, keepdims=True))
  return (values - total + np.log1p(-tail)).astype(np.float32)


def _count(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """[T, K] draws -> ids, each once and in order, and how often; 0 and 0 in the slots left over."""
  t, k = draws.shape
  ordered = np.sort(draws, axis=-1)
  first = np.concatenate([np.ones((t, 1), bool), ordered[:, 1:] != ordered[:, :-1]], axis=-1)
  slot = (np.arange(t)[:, None] * k + np.cumsum(first, axis=-1) - 1).ravel()
  ids = np.zeros(t * k, np.int64)
  ids[slot] = ordered.ravel()
  return ids.reshape(t, k), np.bincount(slot, minlength=t * k).reshape(t, k)


def _entry_bits(layout: Layout) -> tuple[int, int]:
  """Bits of an id, and of what belongs to it."""
  value = layout.bits if layout.kind == "top_k" else layout.k.bit_length()
  return max(1, (layout.vocabulary - 1).bit_length()), value


def _packed_bytes(count: int, bits: int) -> int:
  return (count * bits + 7) // 8


def _pack(values: np.ndarray, bits: int) -> bytes:
  """[T, K] integers below 2^bits, lowest bit first, each row filled up to a byte."""
  octets = values.astype("<u4")[..., None].view(np.uint8)
  digits = np.unpackbits(octets, axis=-1, count=bits, bitorder="little")
  return np.packbits(digits.reshape(len(values), -1), axis=-1, bitorder="little").tobytes()


def _unpack(rows: np.ndarray, count: int, bits: int) -> np.ndarray:
  """uint8 [T, n] -> uint32 [T, count]: each entry is cut out of the four bytes from its first."""
  begin = np.arange(count, dtype=np.uint32) * np.uint32(bits)
  rows = np.pad(rows, ((0, 0), (0, 4))).astype(np.uint32)
  places = begin // 8
  window = rows[:, places]
  for i in range(1, (bits + 14) // 8):
    window |= rows[:, places + np.uint32(i)] << np.uint32(8 * i)
  return (window >> begin % 8) & np.uint32(2**bits - 1)


def _dtype(name: str) -> np.dtype:
  import ml_dtypes

  return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else "<f2")
