"""Gemma 3 270M as `make gemma` fetches it: its text, and its logits against transformers'."""

import pathlib

import jax
import numpy as np
import pytest

from distill_jax.data import tokenizer
from distill_jax.models import huggingface, pretrained, transformer

FILE = pathlib.Path("~/.cache/distill_jax/gemma3-270m-q4_k_m.gguf").expanduser()
TEXTS = ["The capital of France is Paris, and the", "def add(a, b):\n    return a +"]
pytestmark = [
  pytest.mark.slow,
  pytest.mark.filterwarnings("ignore"),
  pytest.mark.skipif(not FILE.is_file(), reason="run `make gemma` first"),
]


def test_its_tokenizer_counts_the_bytes_of_its_text(tmp_path):
  words = tokenizer.load(str(FILE))
  assert (words.vocab_size, words.begin, words.end) == (262_144, 2, 1)
  assert words.encode(["The capital of France is"])[0].tolist() == [818, 5279, 529, 7001, 563]
  text = pathlib.Path(__file__).read_text() + "    \t\t\n\n\n naïve 日本語 🜁 <eos> \x00"
  (ids,) = words.encode([text])
  assert words.decode(ids.tolist()) == text
  assert words.token_bytes[ids].sum() == len(text.encode())
  assert words.end not in ids
  tokenizer.save(str(FILE), tmp_path)
  saved = tokenizer.load(str(tmp_path))
  assert (saved.fingerprint, saved.begin, saved.end) == (words.fingerprint, 2, 1)


def test_logits_agree_with_transformers_on_the_same_weights(tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  torch.set_num_threads(2)
  arch = pretrained.read_architecture(str(FILE))
  params = pretrained.read(pretrained.load(str(FILE)))
  assert huggingface.save(tmp_path, params, arch, "float32") == "gemma3_text"
  tokenizer.save(str(FILE), tmp_path)
  their_words = transformers.AutoTokenizer.from_pretrained(tmp_path)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
  ours = transformer.make(arch)
  run = jax.jit(lambda p, x: ours.logits(p, ours.hidden(p, x)))
  words = tokenizer.load(str(FILE))
  for text in TEXTS:
    (ids,) = words.encode([text])
    ids = np.array([[words.begin, *ids]])
    assert their_words(text)["input_ids"] == ids[0].tolist()
    with torch.no_grad():
      expected = theirs(torch.from_numpy(ids)).logits.numpy()
    got = np.asarray(run(params, ids))
    print(f"{text!r}: largest difference {np.abs(got - expected).max():.2g}")
    print("  continues", repr(words.decode([int(got[0, -1].argmax())])))
    np.testing.assert_allclose(got, expected, atol=2e-3)
