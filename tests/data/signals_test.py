"""Teacher signals as bytes and back."""

import numpy as np
import pytest

from distill_jax.data import signals
from distill_jax.data.signals import Layout

T = 5


def peaked(vocabulary, rows=T, seed=0):
  """log-probabilities [T, V] in float64 with a few likely ids and a long tail."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(rows, vocabulary)) * rng.uniform(1, 4, size=(rows, 1))
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def top(log_p, k):
  ids = np.argsort(-log_p, axis=-1)[:, :k]
  return ids, np.take_along_axis(log_p, ids, -1).astype(np.float32)


def outcomes(log_probs):
  """Probabilities of the ids and of the rest, in float64."""
  p = np.exp(np.asarray(log_probs, np.float64))
  return np.concatenate([p, np.maximum(1 - p.sum(-1, keepdims=True), 1e-300)], -1)


@pytest.mark.parametrize("bits", [1, 2, 7, 8, 9, 12, 17, 23, 24])
@pytest.mark.parametrize("count", [1, 3, 8, 64])
def test_packed_integers_come_back(bits, count):
  values = np.random.default_rng(bits).integers(0, 2**bits, (T, count))
  values[0] = 2**bits - 1
  packed = np.frombuffer(signals._pack(values, bits), np.uint8).reshape(T, -1)
  assert packed.shape[1] == -(-count * bits // 8)
  whole = int.from_bytes(packed[0].tobytes(), "little")  # the layout, said in another way
  assert [whole >> (i * bits) & (2**bits - 1) for i in range(count)] == values[0].tolist()
  np.testing.assert_array_equal(signals._unpack(packed, count, bits), values)


@pytest.mark.parametrize("bits, bound", [(8, 3e-4), (12, 1e-6), (16, 4e-9), (24, 1e-12)])
def test_the_coded_distribution_is_near_the_exact_one(bits, bound):
  layout = Layout("top_k", 64, bits, 1000, T, "", 0)
  ids, log_probs = top(peaked(1000), 64)
  record = signals.encode(layout, ids, log_probs, None)
  assert len(record) == signals.size(layout)
  found = signals.decode(layout, record)
  np.testing.assert_array_equal(found["teacher_ids"], ids)
  p, q = outcomes(log_probs), outcomes(found["teacher_log_probs"])
  assert (p * np.log(p / q)).sum(-1).max() < bound
  np.testing.assert_allclose(q[:, -1], p[:, -1], rtol=1e-5)  # no mass moves to or from the tail
  for name, (shape, dtype) in signals.arrays(layout).items():
    assert (found[name].shape, found[name].dtype) == (shape, dtype)


def test_all_ids_leave_no_tail_and_one_id_keeps_it():
  log_p = peaked(9)
  layout = Layout("top_k", 9, 24, 9, T, "", 0)
  found = signals.decode(layout, signals.encode(layout, *top(log_p, 9), None))
  np.testing.assert_allclose(outcomes(found["teacher_log_probs"])[:, -1], 0, atol=1e-6)
  np.testing.assert_allclose(found["teacher_log_probs"], top(log_p, 9)[1], atol=2e-6)
  layout = Layout("top_k", 1, 2, 9, T, "", 0)  # the lowest is the highest
  found = signals.decode(layout, signals.encode(layout, *top(log_p, 1), None))
  np.testing.assert_allclose(found["teacher_log_probs"], top(log_p, 1)[1], atol=1e-6)


def test_sixty_four_ids_of_llama_take_less_than_300_bytes():
  layout = Layout("top_k", 64, 12, 128_256, 2048, "", 0)
  assert signals.size(layout) / 2048 == 12 + 64 * (17 + 12) / 8 == 244


def test_draws_are_counted():
  draws = np.random.default_rng(0).integers(0, 12, (T, 20))
  layout = Layout("sampled", 20, 2, 12, T, "", 0)
  found = signals.decode(layout, signals.encode(layout, draws, None, None))
  for row, ids, weights in zip(draws, found["teacher_ids"], found["teacher_weights"], strict=True):
    used = ids[weights > 0]
    assert len(set(used)) == len(used) < 20
    np.testing.assert_allclose(
      np.bincount(ids, weights, minlength=12), np.bincount(row, minlength=12) / 20, atol=1e-7
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_hidden_states_are_kept_beside(dtype):
  layout = Layout("top_k", 3, 12, 50, T, dtype, 4)
  hidden = np.random.default_rng(0).normal(size=(T, 4)).astype(np.float32)
  found = signals.decode(layout, signals.encode(layout, *top(peaked(50), 3), hidden))
  assert found["teacher_hidden"].dtype.name == dtype
  np.testing.assert_allclose(found["teacher_hidden"].astype(np.float32), hidden, rtol=1e-2)


def damaged(layout, place, value):
  parts = top(peaked(50), 3) if layout.kind == "top_k" else (np.zeros((T, 3), int), None)
  record = bytearray(signals.encode(layout, *parts, np.ones((T, 4)) if layout.hidden else None))
  record[place : place + len(value)] = value
  return bytes(record)


TOP, HIDDEN = Layout("top_k", 3, 12, 50, T, "", 0), Layout("top_k", 3, 12, 50, T, "float16", 4)
DRAWN = Layout("sampled", 3, 12, 50, T, "", 0)


@pytest.mark.parametrize(
  "layout, record, message",
  [
    (TOP, b"", "it has 0 bytes, not"),
    (TOP, b"x" * 10_000, "it has 10000 bytes, not"),
    (TOP, damaged(TOP, 0, np.float32(np.nan).tobytes()), "out of range"),
    (TOP, damaged(TOP, 0, np.float32(-0.1).tobytes()), "out of range"),
    (TOP, damaged(TOP, 0, np.float32(1.0).tobytes()), "out of range"),
    (TOP, damaged(TOP, 4, np.float32(3.0).tobytes()), "out of range"),  # the lowest
    (TOP, damaged(TOP, 12 * T, b"\xff\xff"), "id 63 is outside the vocabulary of 50"),
    (DRAWN, damaged(DRAWN, 3 * T, b"\xff"), "not those of 3 draws"),
    (HIDDEN, damaged(HIDDEN, signals.size(HIDDEN) - 2, b"\xff\xff"), "not finite"),
  ],
)
def test_damage_is_told(layout, record, message):
  with pytest.raises(ValueError, match=message):
    signals.decode(layout, record)
