"""A row of each domain for every place of a batch."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from distill_jax.config import ConfigError
from distill_jax.data import domains, text

# letters tell the domain; the second of each folder is held out
FILES = {
  "big/0.txt": "b" * 100,
  "big/4.txt": "B" * 60,
  "small/0.txt": "s" * 30,
  "small/28.txt": "S" * 50,
  "tiny/0.txt": "t" * 20,
  "tiny/8.txt": "T" * 20,
  "58.txt": "R" * 30,
  "0.txt": "r" * 30,
}


@pytest.fixture
def config(tmp_path):
  for name, content in FILES.items():
    (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "texts" / name).write_text(content)
    assert text.held_out(name) == content.isupper()
  config = ConfigDict(dict(seed=0, batch_size=4, eval_batches=1, cache_dir=str(tmp_path / "cache")))
  config.data = dict(field="text", tokenizer="bytes", seq_len=9, domains=3)
  config.data.source = str(tmp_path / "texts")
  return config


def test_the_folders_with_most_held_out_text_are_domains_and_the_rest_is_another(config):
  for split, letters in (("train", "bsrt"), ("validation", "BSRT")):
    found = domains.rows(config, split)
    assert list(found) == ["big", "small", "other"]
    spelled = ["".join(chr(t) for t in np.unique(rows) if t < 256) for rows in found.values()]
    assert spelled == [letters[0], letters[1], "".join(sorted(letters[2:]))]
  config.data.domains = 4
  assert list(domains.rows(config, "train")) == [".", "big", "small", "other"]


def test_a_batch_has_a_row_of_every_domain_and_short_ones_begin_again(config):
  data, spec = iter(domains.make(config)), domains.spec(config)
  longest = len(domains.rows(config, "train")["big"])
  first = next(data)
  assert {k: (v.shape, v.dtype) for k, v in first.items()} == {
    k: (v.shape, v.dtype) for k, v in spec.items()
  }
  seen = [first, *(next(data) for _ in range(2 * longest // 4))]
  rows = np.concatenate([b["tokens"] for b in seen])
  for i, allowed in enumerate(("b", "s", "rt")):
    letters = {chr(t) for t in np.unique(rows[:, i]) if t < 256}
    assert letters == set(allowed)
  assert all(b["mask"].all() for b in seen)


def test_an_iterator_goes_on_where_it_was_and_processes_share_a_batch(config, monkeypatch):
  data = iter(domains.make(config))
  whole, state = next(data), data.get_state()
  expected = next(data)["tokens"]
  data.set_state(state)
  np.testing.assert_array_equal(next(data)["tokens"], expected)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  shares = []
  for index in range(2):
    monkeypatch.setattr(jax, "process_index", lambda index=index: index)
    shares.append(next(iter(domains.make(config)))["tokens"])
  np.testing.assert_array_equal(np.concatenate(shares), whole["tokens"])


def test_held_out_rows_are_spread_over_every_domain(config):
  held = domains.held_out(config, 4)
  assert held.shape == (3, 4, 10)
  assert [chr(rows[0, 0]) for rows in held] == ["B", "S", "R"]
  assert chr(held[2, -1, 1]) == "T"
  with pytest.raises(ConfigError, match="The domain 'small' holds out 5 rows of 9 tokens"):
    domains.held_out(config, 6)


@pytest.mark.parametrize("count", [1, 5])
def test_there_are_as_many_domains_as_folders_at_most(config, count):
  config.data.domains = count
  with pytest.raises(ConfigError, match=f"data.domains is {count}, .* has 4 folders"):
    domains.rows(config, "train")


def test_a_domain_without_text_is_named(config, tmp_path):
  (tmp_path / "texts/big/0.txt").unlink()
  with pytest.raises(ConfigError, match="The domain 'big' has no text for the train split"):
    domains.rows(config, "train")
