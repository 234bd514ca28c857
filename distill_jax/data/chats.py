"""Conversations as prompts and completions: lines {"messages": [{"role": str, "content": str},
...]} of a .jsonl file, the last message the assistant's.

The template of the tokenizer writes them. The completion is the last message and the token that
ends it; the prompt is all before, with the words that announce an answer. What the template writes
after the end of the answer is left out.
"""

import pathlib
from collections.abc import Iterator

import numpy as np

from distill_jax.config import ConfigError
from distill_jax.data import text
from distill_jax.data import tokenizer as tokenizer_lib

Messages = list[dict[str, str]]


def found(source: str) -> bool:
  """Whether the first line of the source is a conversation."""
  file = pathlib.Path(source).expanduser()
  if not source.endswith(".jsonl") or not file.is_file():
    return False
  with file.open(encoding="utf-8") as lines:
    return '"messages"' in next((line for line in lines if line.strip()), "")


def ids(source: str, tokenizer: str, split: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """Token ids of the prompts and completions of a split, each with the end of document; prompts
  without the token that begins texts.

  Raises:
    ConfigError: a line is no conversation, or the tokenizer has no template that writes it.
  """
  known = tokenizer_lib.load(tokenizer)
  if known.chat is None:
    raise ConfigError(f"{source} has conversations: tokenizer {tokenizer!r} has no chat template.")
  pairs = [
    written(known, messages, f"{source}:{number}")
    for number, messages in conversations(source)
    if text.held_out(str(number)) == (split == "validation")
  ]
  prompts, answers = (known.encode([pair[i] for pair in pairs], special=True) for i in (0, 1))
  return (
    [np.append(p[1:] if len(p) and p[0] == known.begin else p, known.end) for p in prompts],
    [_ended(answer, known.end) for answer in answers],
  )


def written(tokenizer: tokenizer_lib.Tokenizer, messages: Messages, where: str) -> tuple[str, str]:
  """The conversation up to the last answer, and the answer, as the template writes them."""
  prompt = tokenizer.chat(messages[:-1], add_generation_prompt=True)  # type: ignore[misc]
  whole = tokenizer.chat(messages)  # type: ignore[misc]
  if not whole.startswith(prompt):
    raise ConfigError(f"{where}: the chat template writes the answer not as its prompt announces.")
  return prompt, whole[len(prompt) :]


def conversations(source: str) -> Iterator[tuple[int, Messages]]:
  """Line number and messages of every line that is not empty."""
  for number, record in text.json_lines(source):
    messages = record.get("messages")
    if messages is None or not _are_messages(messages):
      raise ConfigError(
        f'{source}:{number}: "messages" is to be a list of {{"role": ..., "content": ...}}, two or '
        "more, the last one the assistant's."
      )
    yield number, messages


def _are_messages(messages) -> bool:
  return (
    isinstance(messages, list)
    and len(messages) > 1  # something is asked
    and all(
      isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
      for m in messages
    )
    and messages[-1]["role"] in ("assistant", "model")
  )


def _ended(answer, end):
  places = np.flatnonzero(answer == end)
  return answer[: places[0] + 1] if len(places) else np.append(answer, end)
