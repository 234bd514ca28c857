"""What a student writes after a prompt, greedily, against what should follow.

  exact_match  share of the prompts after which its text is the completion, white space at the ends
               apart
  rouge_l      F-measure of the longest common subsequence of words, a mean over prompts
  length       tokens written, the end of document not counted, a mean over prompts

Prompts and completions are those of `eval_prompts`, FILE.jsonl with lines {"prompt": str,
"completion": str}; with data.name `completions` the held-out ones; otherwise held-out text, of
which the first `method.prompt` tokens of a row are the prompt and the next `eval_tokens` the
completion. At most `eval_batches` batches are looked at. A prompt that leaves no room for
`eval_tokens` in `data.seq_len` loses its beginning.

Lin, ROUGE: A Package for Automatic Evaluation of Summaries (2004), section 3.1, with beta = 1.
"""

import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding

from distill_jax.config import ConfigError
from distill_jax.data import completions, text, tokenizer
from distill_jax.mesh import put_batch
from distill_jax.models import student as student_lib
from distill_jax.sampling import sample


def make(config):
  """Tokenises the prompts once; `evaluate(state, frozen)` looks at state["student"]."""
  tokens, mesh = tokenizer.load(config.data.tokenizer), jax.sharding.get_mesh()
  found = pairs(config)[: config.eval_batches * config.batch_size]
  answers = [answer for _, answer in found]
  batches = [put_batch(batch, mesh) for batch in _batches(config, [ids for ids, _ in found])]
  student = student_lib.model(config, "student")
  whole = None if mesh.empty else NamedSharding(mesh, jax.P())  # each process scores all

  def write(params, prompts, lengths):
    how = dict(new_tokens=config.eval_tokens, temperature=0.0, stop_tokens=(tokens.end,))
    written = sample(student, params, prompts, jax.random.key(0), lengths=lengths, **how)
    return written.tokens, written.generated

  write = jax.jit(write, out_shardings=whole)

  def evaluate(state, frozen):
    texts, sizes = [], []
    for batch in batches:
      rows, generated = jax.device_get(write(state["student"], batch["prompts"], batch["lengths"]))
      for row, new in zip(rows, generated, strict=True):
        ids = [int(i) for i in row[new] if i != tokens.end]
        sizes.append(len(ids))
        texts.append(tokens.decode(ids))
    scores = [
      (text.strip() == answer.strip(), rouge_l(text, answer), size)
      for text, answer, size in zip(texts, answers, sizes, strict=False)  # the rest is filling
    ]
    return dict(
      zip(("exact_match", "rouge_l", "length"), np.mean(scores, axis=0).tolist(), strict=True)
    )

  return evaluate


def pairs(config) -> list[tuple[np.ndarray, str]]:
  """Token ids of prompts and the texts of their completions.

  Raises:
    ConfigError: there are none.
  """
  tokens = tokenizer.load(config.data.tokenizer)
  if config.eval_prompts or config.data.name == "completions":
    if config.eval_prompts:
      texts = [
        pair for _, pair in completions.records(config.eval_prompts, ("prompt", "completion"))
      ]
    else:
      texts = [e[1:] for e in completions.examples(config) if text.held_out(e[0]) and e[1]]
    if not texts:
      raise ConfigError(
        "generation: eval_prompts, or the held-out part of the data, has no prompt."
      )
    begin = [] if tokens.begin is None else [tokens.begin]
    prompts = tokens.encode([prompt for prompt, _ in texts])
    return [
      (np.array([*begin, *ids], np.int32), answer)
      for ids, (_, answer) in zip(prompts, texts, strict=True)
    ]
  found, place = text.rows(config, "validation"), config.method.prompt
  count = min(len(found), config.eval_batches * config.batch_size)
  chosen = found[np.linspace(0, len(found) - 1, count).astype(int)]
  pairs = []
  for row in chosen:
    after = row[place : place + config.eval_tokens]
    ends = np.flatnonzero(after == tokens.end)
    after = after[: ends[0]] if len(ends) else after
    pairs.append((row[:place], tokens.decode([int(i) for i in after])))
  return pairs


def _batches(config, prompts: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
  """This process's rows of batches of one width, the last filled up with the last prompt."""
  room = config.data.seq_len + 1 - config.eval_tokens
  if room < 1:
    raise ConfigError(f"eval_tokens {config.eval_tokens} leave no prompt in data.seq_len.")
  prompts = [ids[-room:] for ids in prompts]
  if not all(len(ids) for ids in prompts):
    raise ConfigError("generation: a prompt is empty; the student needs a token to begin from.")
  size = config.batch_size
  prompts += [prompts[-1]] * (-len(prompts) % size)
  lengths = np.array([len(ids) for ids in prompts], np.int32)
  table = np.zeros((len(prompts), lengths.max()), np.int32)
  for row, ids in zip(table, prompts, strict=True):
    row[: len(ids)] = ids
  share = size // jax.process_count()
  first = jax.process_index() * share
  starts = range(first, len(prompts), size)
  return [dict(prompts=table[i : i + share], lengths=lengths[i : i + share]) for i in starts]


def rouge_l(text: str, reference: str) -> float:
  """2 P R / (P + R), where P and R are the longest common subsequence over the words of each text;
  words are runs of a-z and 0-9, in lower case. 0 without words in common."""
  ours, theirs = (re.findall("[a-z0-9]+", x.lower()) for x in (text, reference))
  common = _common_subsequence(ours, theirs)
  return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
  """Its length, a row of the table at a time as the bits of an integer (Hyyrö 2004)."""
  places: dict[str, int] = {}
  for i, word in enumerate(a):
    places[word] = places.get(word, 0) | 1 << i
  full = (1 << len(a)) - 1
  row = full
  for word in b:
    match = row & places.get(word, 0)
    row = (row + match | row - match) & full
  return len(a) - row.bit_count()
