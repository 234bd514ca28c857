"""The tasks of lm-eval on a model in files.

  python -m distill_jax.evals.harness --model distill_jax/assets/stdlib_teacher --tasks arc_easy
  [--include_path FOLDER] [--num_fewshot 5] [--limit 100] [--out results.json]

It needs `pip install 'distill_jax[lm_eval]'`. Texts are padded to a power of two of tokens, at most
`--max_length`, so that few programs are compiled. What is longer loses its beginning.

Gao et al., The Language Model Evaluation Harness (zenodo.org/records/12608602).
"""

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.config import ConfigError, write_whole
from distill_jax.data import tokenizer as tokenizer_lib
from distill_jax.losses.linear_divergence import linear_loss
from distill_jax.losses.log_probs import token_log_probs
from distill_jax.models import pretrained as pretrained_lib
from distill_jax.models import student as student_lib
from distill_jax.models import transformer
from distill_jax.sampling import sample

SHORTEST = 32  # tokens of the shortest rows


def adapter(
  model: transformer.Model,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  *,
  max_length: int = 1024,
  batch_size: int = 8,
  chunk: int = 1024,
) -> Any:
  """An `lm_eval.api.model.LM` for `lm_eval.simple_evaluate(model=...)`.

  Args:
    max_length: tokens that the model sees at a time, a power of two times 32.
    batch_size: rows of a program; the last ones are filled up.
    chunk: tokens whose logits exist at a time.

  Raises:
    ConfigError: lm-eval is not installed.
  """
  try:
    from lm_eval.api.model import LM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
  except ImportError:
    raise ConfigError("lm-eval is missing: pip install 'distill_jax[lm_eval]'.") from None
  first = tokenizer.end if tokenizer.begin is None else tokenizer.begin
  programs = _programs(model, tokenizer.end, chunk)

  def encode(text: str) -> list[int]:
    return tokenizer.encode([text])[0].tolist()

  def score(pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    rows = [np.array([*context, *after])[-max_length - 1 :] for context, after in pairs]
    answers: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    for chosen, width in _batches([len(row) - 1 for row in rows], batch_size, max_length):
      tokens = np.zeros((batch_size, width + 1), np.int32)
      mask = np.zeros((batch_size, width), bool)
      for i, number in enumerate(chosen):
        row, counted = rows[number], min(len(pairs[number][1]), len(rows[number]) - 1)
        tokens[i, : len(row)] = row
        mask[i, len(row) - 1 - counted : len(row) - 1] = True
      log_probs, misses = jax.device_get(programs.score(params, tokens, mask))
      for i, number in enumerate(chosen):
        answers[number] = float(log_probs[i]), bool(misses[i] == 0)
    return answers

  class Adapter(LM):
    def loglikelihood(self, requests):
      return score([_pair(encode, first, tokenizer.begin, *r.args) for r in requests])

    def loglikelihood_rolling(self, requests):
      totals = []
      for request in requests:
        ids = encode(request.args[0])
        windows = get_rolling_token_windows(ids, first, max_length, context_len=1)
        parts = score([make_disjoint_window(w) for w in windows]) if ids else []
        totals.append(sum(log_prob for log_prob, _ in parts))
      return totals

    def generate_until(self, requests):
      texts = [""] * len(requests)
      plans = [_plan(request.args[1], max_length) for request in requests]
      for count in sorted({plan[0] for plan in plans}):
        numbers = [i for i, plan in enumerate(plans) if plan[0] == count]
        prompts = [encode(requests[i].args[0]) for i in numbers]
        lead = [] if tokenizer.begin is None else [tokenizer.begin]
        prompts = [[*lead, *ids][-(max_length - count) :] or [first] for ids in prompts]
        lengths = [len(ids) for ids in prompts]
        for chosen, width in _batches(lengths, batch_size, max_length - count):
          tokens, sizes = np.zeros((batch_size, width), np.int32), np.ones(batch_size, np.int32)
          for i, number in enumerate(chosen):
            tokens[i, : lengths[number]], sizes[i] = prompts[number], lengths[number]
          out = jax.device_get(programs.write(params, tokens, sizes, count))
          for i, number in enumerate(chosen):
            new = [int(t) for t in out.tokens[i][out.generated[i]] if t != tokenizer.end]
            texts[numbers[number]] = _cut(tokenizer.decode(new), plans[numbers[number]][1])
      return texts

  return Adapter()


class _programs:
  """Both compiled functions of a model; a program for each width, and number of new tokens."""

  def __init__(self, model: transformer.Model, end: int, chunk: int):
    form = student_lib.head(model)

    @jax.jit
    def score(params, tokens, mask):
      """Sum of the log-probabilities that count, and how many of them are not the largest. [B]"""
      hidden, targets = model.hidden(params, tokens[:, :-1]), tokens[:, 1:]

      def both(logits, ids):
        missed = jnp.argmax(logits, -1) != ids
        return jnp.stack([token_log_probs(logits, ids), missed.astype(jnp.float32)], axis=-1)

      rest: dict[str, Any] = dict(where=mask, chunk=chunk, student=form)
      values = linear_loss(both, hidden, model.head(params), targets, **rest)
      return values[..., 0].sum(1), values[..., 1].sum(1)

    @functools.partial(jax.jit, static_argnums=3)
    def write(params, prompts, lengths, count):
      how: dict[str, Any] = dict(new_tokens=count, temperature=0.0, stop_tokens=(end,))
      return sample(model, params, prompts, jax.random.key(0), lengths=lengths, **how)

    self.score, self.write = score, write


def _batches(lengths: Sequence[int], size: int, longest: int) -> Iterator[tuple[list[int], int]]:
  """Numbers of rows of one padded length, at most `size` at a time, and the length."""
  groups: dict[int, list[int]] = {}
  for number, length in enumerate(lengths):
    width = SHORTEST
    while width < length:
      width *= 2
    groups.setdefault(min(width, longest), []).append(number)
  for width, numbers in sorted(groups.items()):
    for i in range(0, len(numbers), size):
      yield numbers[i : i + size], width


def _pair(
  encode: Callable, first: int, begin: int | None, context: str, after: str
) -> tuple[list[int], list[int]]:
  """Ids of both, split where the context's end; spaces between them belong to what follows."""
  spaces = len(context) - len(context.rstrip())
  if spaces:
    context, after = context[:-spaces], context[-spaces:] + after
  if not context:
    return [first], encode(after)
  ids, lead = encode(context), [] if begin is None else [begin]
  return [*lead, *ids], encode(context + after)[len(ids) :]


def _plan(options: dict[str, Any], max_length: int) -> tuple[int, list[str]]:
  """How many tokens to write, and the texts at which to stop."""
  if options.get("do_sample") and options.get("temperature", 1.0) != 0:
    raise ConfigError("generate_until: this adapter is greedy, the task asks for samples.")
  until = options.get("until") or []
  count = min(int(options.get("max_gen_toks", 256)), max_length // 2)
  return count, [until] if isinstance(until, str) else list(until)


def _cut(text: str, until: Iterable[str]) -> str:
  for stop in until:
    if stop:
      text = text.partition(stop)[0]
  return text


def main(argv: list[str]) -> int:
  arguments = argparse.ArgumentParser(prog="python -m distill_jax.evals.harness")
  arguments.add_argument("--model", required=True, help="a model folder, or a .gguf file")
  arguments.add_argument("--tokenizer", default="", help="where it is not with the model")
  arguments.add_argument("--tasks", required=True, help="names, with commas between them")
  arguments.add_argument("--include_path", help="a folder with tasks of your own")
  arguments.add_argument("--num_fewshot", type=int)
  arguments.add_argument("--limit", type=int, help="so many documents of each task")
  arguments.add_argument("--batch_size", type=int, default=8)
  arguments.add_argument("--max_length", type=int, default=1024)
  arguments.add_argument("--dtype", default="float32", help="float32 | bfloat16")
  arguments.add_argument("--out", type=pathlib.Path, help="a JSON file for the results")
  args = arguments.parse_args(argv)
  try:
    results = run(args)
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(json.dumps(results, indent=2))
  if args.out:
    write_whole(args.out, json.dumps(results, indent=2) + "\n")
  return 0


def run(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
  """Task -> metric -> value."""
  tokens = tokenizer_lib.load(args.tokenizer or args.model)
  arch = pretrained_lib.read_architecture(args.model)
  arch.dtype = arch.param_dtype = args.dtype
  model = transformer.make(arch, tokens.vocab_size)
  loaded = pretrained_lib.read(pretrained_lib.load(args.model))
  params = jax.tree.map(lambda x: jnp.asarray(x, args.dtype), loaded)
  sizes = dict(max_length=args.max_length, batch_size=args.batch_size)
  lm = adapter(model, params, tokens, **sizes)
  import lm_eval
  from lm_eval.tasks import TaskManager

  names = args.tasks.split(",")
  # tasks of one's own alone, if these are all: the index of the others takes seconds
  for defaults in (False, True) if args.include_path else (True,):
    manager = TaskManager(include_path=args.include_path, include_defaults=defaults)
    unknown = [name for name in names if not manager.match_tasks([name])]
    if not unknown:
      break
  else:
    raise ConfigError(f"lm-eval has no task {unknown[0]!r}: see lm-eval ls tasks, --include_path.")
  options = dict(num_fewshot=args.num_fewshot, limit=args.limit, log_samples=False)
  return lm_eval.simple_evaluate(lm, tasks=names, task_manager=manager, **options)["results"]


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
