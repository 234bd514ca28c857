"""What the files beside a tokenizer say: which tokens begin and end a text, and how chats are
written.
"""

import datetime
import json
import pathlib
from collections.abc import Callable
from typing import Any

from distill_jax.config import ConfigError

FILES = ("tokenizer_config.json", "config.json", "generation_config.json")  # the last has its way
TODAY = datetime.date(2024, 7, 26)  # what templates take for today: Llama 3's own default


def settings(folder: pathlib.Path) -> tuple[dict[str, Any], str | None]:
  """What the JSON files beside a tokenizer say, and the chat template."""
  found: dict[str, Any] = {}
  for name in FILES:
    if (folder / name).is_file():
      try:
        found |= {k: v for k, v in json.loads((folder / name).read_text()).items() if v is not None}
      except (json.JSONDecodeError, AttributeError) as error:
        raise ConfigError(f"{folder / name} is not a JSON object: {error}.") from None
  template = found.get("chat_template")
  if isinstance(template, list):  # of several, by name
    template = {t["name"]: t["template"] for t in template}.get("default")
  if (folder / "chat_template.jinja").is_file():
    template = (folder / "chat_template.jinja").read_text()
  return found, template


def token_id(settings: dict[str, Any], key: str, find: Callable[[str], int | None]) -> int | None:
  """The id of `bos` or `eos`: by number in the model's configs, else by name in the tokenizer's."""
  number, name = settings.get(f"{key}_token_id"), settings.get(f"{key}_token")
  if isinstance(number, list):
    number = number[0] if number else None
  if number is not None:
    return int(number)
  name = name.get("content") if isinstance(name, dict) else name
  return find(name) if name else None


def render(path, template, names, messages, add_generation_prompt=False) -> str:
  """Messages as the text that a model was tuned on; its template runs in a sandbox.

  Templates find what `transformers` gives them: break and continue, JSON without escapes,
  raise_exception, strftime_now (of `TODAY`, so that data do not change over night), and marks of
  what the model generates, which are left out.
  """
  if not template:
    raise ConfigError(f"{path} comes with no chat template: the model was not tuned for chats.")
  try:
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment
  except ImportError:
    raise ConfigError(f"{path}: chats need: pip install 'distill_jax[pretrained]'.") from None

  def refuse(message):
    raise jinja2.TemplateError(message)

  class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
      next(parser.stream)
      return parser.parse_statements(("name:endgeneration",), drop_needle=True)

  environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation]
  )
  environment.globals |= dict(raise_exception=refuse, strftime_now=TODAY.strftime)
  environment.filters["tojson"] = lambda x, indent=None: json.dumps(
    x, ensure_ascii=False, indent=indent
  )
  try:
    return environment.from_string(template).render(
      messages=messages, add_generation_prompt=add_generation_prompt, **names
    )
  except jinja2.TemplateError as error:
    raise ConfigError(f"{path}: its chat template says: {error}.") from None
