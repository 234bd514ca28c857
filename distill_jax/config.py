"""Config files: which experiment, with which argument and which overrides.

An experiment is a Python file with `get_config(arg=None) -> ConfigDict`. It is named on the command
line as `experiments/llm/kd.py:smoke,seed=3`; what follows the colon is handed to `get_config`,
which reads it with `parse_arg`. Whatever is wrong raises `ConfigError` with one line that names the
key or the file and says what would be right.
"""

import ast
import difflib
import importlib.util
import json
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

ROOT = pathlib.Path(__file__).resolve().parent.parent  # the checkout, or site-packages


class ConfigError(ValueError):
  """A mistake in a config or on the command line, told in one line."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
  """' Did you mean ...?' or a list of what is known."""
  known = sorted(known)
  close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
  if not close:  # a dotted key is often right in its last part alone
    close = [k for k in known if k.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]]
  if close:
    return f" Did you mean {close[0]!r}?"
  return f" Known: {', '.join(known[:20])}." if known else ""


def load(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
  """Runs the experiment file of `path.py[:arg]` and applies overrides of the form
  `key.of.config=value`."""
  path, _, arg = spec.partition(":")
  module = load_file(path)
  if not hasattr(module, "get_config"):
    raise ConfigError(f"{path} defines no get_config(arg=None), so it is not an experiment.")
  config = in_file(path, module.get_config, arg or None)
  if not isinstance(config, ConfigDict):
    raise ConfigError(f"{path}: get_config returned {type(config).__name__}, not a ConfigDict.")
  config.lock()
  for override in overrides:
    key, equals, text = override.partition("=")
    if not equals:
      raise ConfigError(f"--config.{override} has no value: write --config.{key}=VALUE.")
    assign(config, key, text)
  return config


def load_file(path: str) -> Any:
  """The module of an experiment or table file. `experiments` is importable from it wherever the
  command runs."""
  file = pathlib.Path(path)
  if not file.exists() and (ROOT / path).exists():
    file = ROOT / path
  if not file.is_file():
    siblings = [str(p) for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
    raise ConfigError(f"No file {path!r}." + did_you_mean(str(file), siblings))
  homes = [p for p in file.resolve().parents if (p / "experiments" / "common.py").exists()]
  for home in [*homes[:1], *([ROOT] if (ROOT / "experiments").is_dir() else [])]:
    if str(home) not in sys.path:
      sys.path.insert(0, str(home))
  spec = importlib.util.spec_from_file_location(file.stem, file)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  in_file(path, spec.loader.exec_module, module)
  return module


def in_file(path: str, call: Callable, *args) -> Any:
  """Calls into a user's file; an error there becomes one line with its file and line number."""
  try:
    return call(*args)
  except ConfigError:
    raise
  except Exception as error:
    places = [  # in the user's files, not in the libraries that they call
      f"{f.filename}:{f.lineno}"
      for f in traceback.extract_tb(error.__traceback__)
      if f.filename != __file__ and "-packages" not in f.filename and f.filename[0] != "<"
    ]
    if isinstance(error, SyntaxError):
      places.append(f"{error.filename}:{error.lineno}")
      error.filename = error.lineno = None  # said once
    where = places[-1] if places else path
    raise ConfigError(f"{where}: {type(error).__name__}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
  """The message, freed of the quotes and escapes that KeyError puts around it."""
  while error.args and isinstance(error.args[0], BaseException):
    error = error.args[0]
  text = error.args[0] if isinstance(error, KeyError) and error.args else error
  return " ".join(str(text).split())


def parse_arg(arg: str | None, **defaults) -> ConfigDict:
  """Parses `smoke,student=0.5b` against typed defaults; a bare word sets a boolean. Unknown words
  raise."""
  values = ConfigDict(defaults)
  for item in (arg or "").split(",") if arg else []:
    key, equals, text = item.partition("=")
    if key not in defaults:
      raise ConfigError(f"Unknown config argument {key!r}." + did_you_mean(key, defaults))
    values[key] = _parse(key, text, values[key]) if equals else _flag(key, values[key])
  return values


def _flag(key: str, default: Any) -> bool:
  if not isinstance(default, bool):
    raise ConfigError(f"Config argument {key!r} needs a value: {key}=...")
  return True


def assign(config: ConfigDict, key: str, text: str) -> None:
  """Sets a dotted key from text, with the type of the value that is there."""
  *parents, last = key.split(".")
  node = config
  for parent in parents:
    node = node[parent] if isinstance(node, ConfigDict) and parent in node else None
  if not isinstance(node, ConfigDict) or last not in node:
    raise ConfigError(f"Unknown config key {key!r}." + did_you_mean(key, dict(flatten(config))))
  if isinstance(node[last], ConfigDict):
    keys = ", ".join(f"{key}.{k}" for k in node[last])
    raise ConfigError(f"Config key {key!r} is a group, set one of its keys: {keys}.")
  node[last] = _parse(key, text, node[last])


def _parse(key: str, text: str, old: Any) -> Any:
  """`text` as a value of the type of `old`; None takes any literal."""
  if isinstance(old, str):
    return text
  try:
    value = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text, text))
  except (ValueError, SyntaxError, TypeError):
    value = text
  if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if isinstance(old, int) and isinstance(value, float) and value.is_integer():
    value = int(value)  # 1e6 steps
  if old is not None and (type(value) is not type(old)):
    raise ConfigError(f"Config key {key!r} takes {type(old).__name__}, got {text!r}.")
  return value


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """All (dotted key, value) pairs."""
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      yield from flatten(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value


def load_saved(workdir: pathlib.Path) -> ConfigDict:
  """The config of a run, from its work directory."""
  file = workdir / "config.json"
  if not file.exists():
    raise ConfigError(f"No run at {str(workdir)!r}: it has no config.json.")
  return ConfigDict(json.loads(file.read_text())).lock()


def differences(config: ConfigDict, workdir: pathlib.Path) -> list[str]:
  """The keys in which the config.json of a work directory differs, as 'key: there -> here'; none
  without one."""
  file = workdir / "config.json"
  if not file.exists():
    return []
  there, here = (
    dict(flatten(ConfigDict(json.loads(text))))
    for text in (file.read_text(), config.to_json_best_effort())
  )
  keys = sorted(there.keys() | here.keys())
  return [f"{k}: {there.get(k)} -> {here.get(k)}" for k in keys if there.get(k) != here.get(k)]


def save(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Writes config.json and versions.json into the work directory."""
  import flax
  import jax

  import distill_jax

  write_whole(workdir / "config.json", config.to_json_best_effort(indent=2) + "\n")
  versions = dict(distill_jax=distill_jax.__version__, jax=jax.__version__, flax=flax.__version__)
  write_whole(workdir / "versions.json", json.dumps(versions, indent=2) + "\n")


def write_whole(path: pathlib.Path, text: str) -> None:
  """Writes a file that is there whole or not at all, whenever the process is killed."""
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(text)
  temporary.replace(path)
