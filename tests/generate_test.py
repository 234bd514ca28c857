"""Text written by the teacher that ships with the project."""

import json

import pytest

from distill_jax import generate
from distill_jax.config import ConfigError, load
from distill_jax.data import text, tokenizer

SMALL = ("data.seq_len=24", "batch_size=8", "method.prompt=8", "method.temperature=0.0")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  cache = tmp_path_factory.mktemp("cache")
  return load("experiments/llm/seqkd.py", (*SMALL, f"cache_dir={cache}"))


def test_lines_hold_prompts_of_the_text_and_an_interrupted_file_ends_the_same(config, tmp_path):
  out = tmp_path / "written.jsonl"
  assert generate.generate(config, out, rows=12) == 0  # rounded up to two batches
  whole = out.read_bytes()
  lines = [json.loads(line) for line in whole.splitlines()]
  assert len(lines) == 16 and all(set(line) == {"prompt", "completion"} for line in lines)
  own = tokenizer.load(config.data.tokenizer)
  first = text.rows(config, "train")[0]
  assert lines[0]["prompt"] == own.decode(first[:8])
  assert any(line["completion"] for line in lines)
  out.write_bytes(whole[: len(whole) * 2 // 3])  # in the middle of a line
  done = generate.generate(config, out, rows=12)
  assert 8 <= done < 16 and out.read_bytes() == whole


def test_a_random_model_has_nothing_to_say(config, tmp_path):
  random = load("experiments/llm/seqkd.py:smoke")
  with pytest.raises(ConfigError, match=r"pretrained\.teacher names no model"):
    generate.generate(random, tmp_path / "written.jsonl", rows=8)
  with pytest.raises(ConfigError, match="the training text has"):
    generate.generate(config, tmp_path / "written.jsonl", rows=10**9)
