"""Configs: what a mistake prints, what text parses to, and what is kept in a work directory."""

import json
import pathlib

import pytest
from ml_collections import ConfigDict

from distill_jax import config as config_lib
from distill_jax.config import ConfigError

EXPERIMENT = "experiments/llm/kd.py"


def small():
  return ConfigDict(
    dict(
      steps=10,
      rate=0.5,
      name="kd",
      fast=False,
      evals=("a",),
      free=None,
      optim=dict(lr=1e-3, warmup=2, inner=dict(b1=0.9)),
    )
  ).lock()


def one_line(error) -> str:
  """The message, which has to be one line."""
  message = str(error.value)
  assert message and "\n" not in message
  return message


def write(path: pathlib.Path, *lines: str) -> str:
  path.write_text("\n".join(lines) + "\n")
  return str(path)


def assign(text: str):
  config = small()
  config_lib.assign(config, *text.split("=", 1))
  return config


@pytest.mark.parametrize(
  "text, key, value",
  [
    ("steps=20", "steps", 20),
    ("steps=1e6", "steps", 1_000_000),
    ("steps=-3", "steps", -3),
    ("rate=2", "rate", 2.0),
    ("rate=1e-4", "rate", 1e-4),
    ("name=7", "name", "7"),
    ("name=a=b", "name", "a=b"),
    ("name=", "name", ""),
    ("fast=true", "fast", True),
    ("fast=True", "fast", True),
    ("evals=()", "evals", ()),
    ("evals=('x','y')", "evals", ("x", "y")),
    ("evals=(('power', 6.94),)", "evals", (("power", 6.94),)),
    ("free=none", "free", None),
    ("free=3", "free", 3),
    ("free=word", "free", "word"),
    ("optim.lr=3", "optim.lr", 3.0),
    ("optim.inner.b1=0.5", "optim.inner.b1", 0.5),
  ],
)
def test_assign_parses_text_as_the_type_that_is_there(text, key, value):
  changed = dict(config_lib.flatten(assign(text)))
  before = dict(config_lib.flatten(small()))
  assert changed == {**before, key: value}
  assert type(changed[key]) is type(value)


@pytest.mark.parametrize(
  "text, says",
  [
    ("stepz=3", "Unknown config key 'stepz'. Did you mean 'steps'?"),
    ("optim.wramup=3", "Unknown config key 'optim.wramup'. Did you mean 'optim.warmup'?"),
    ("lr=3", "Unknown config key 'lr'. Did you mean 'optim.lr'?"),  # right in its last part
    ("name.lr=3", "Unknown config key 'name.lr'. Did you mean "),  # through a value
    ("steps=2.5", "Config key 'steps' takes int, got '2.5'."),
    ("steps=many", "Config key 'steps' takes int, got 'many'."),
    ("steps=True", "Config key 'steps' takes int, got 'True'."),
    ("rate=fast", "Config key 'rate' takes float, got 'fast'."),
    ("rate=True", "Config key 'rate' takes float, got 'True'."),
    ("fast=1", "Config key 'fast' takes bool, got '1'."),
    ("evals=language", "Config key 'evals' takes tuple, got 'language'."),
    ("evals={[]: 1}", "Config key 'evals' takes tuple, got '{[]: 1}'."),
    ("optim=3", "Config key 'optim' is a group, set one of its keys: optim.inner, optim.lr,"),
  ],
)
def test_assign_refuses_in_one_line(text, says):
  with pytest.raises(ConfigError) as error:
    assign(text)
  assert one_line(error).startswith(says)


def test_an_unknown_key_without_a_close_one_lists_what_is_known():
  with pytest.raises(ConfigError) as error:
    assign("zzz=1")
  message = one_line(error)
  assert all(key in message for key in ("steps", "optim.inner.b1"))


def test_parse_arg_bare_words_values_and_types():
  values = config_lib.parse_arg("smoke,student=0.5b,seed=1e3", smoke=False, student="", seed=0)
  assert dict(values) == dict(smoke=True, student="0.5b", seed=1000)
  assert dict(config_lib.parse_arg(None, smoke=False)) == dict(smoke=False)
  assert dict(config_lib.parse_arg("", smoke=False)) == dict(smoke=False)


@pytest.mark.parametrize(
  "arg, says",
  [
    ("smok", "Unknown config argument 'smok'. Did you mean 'smoke'?"),
    ("seed", "Config argument 'seed' needs a value: seed=..."),
    ("smoke,", "Unknown config argument ''."),
    ("seed=x", "Config key 'seed' takes int, got 'x'."),
  ],
)
def test_parse_arg_refuses_in_one_line(arg, says):
  with pytest.raises(ConfigError) as error:
    config_lib.parse_arg(arg, smoke=False, seed=0)
  assert one_line(error).startswith(says)


def test_load_hands_the_argument_on_and_applies_overrides_in_order():
  overrides = ("optim.lr=5e-4", "steps=7", "steps=9", "ema=(('half_life', 10.0),)")
  config = config_lib.load(f"{EXPERIMENT}:smoke,divergence=reverse_kl,seed=4", overrides)
  assert config.divergence.kind.name == "reverse_kl"
  assert (config.seed, config.steps, config.optim.lr) == (4, 9, 5e-4)
  assert config.ema == (("half_life", 10.0),)
  assert config.is_locked
  with pytest.raises(AttributeError):
    config.optim.lrr = 1


def test_load_finds_the_projects_experiments_from_another_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert config_lib.load(EXPERIMENT).method.name == "llm.kd"


def test_a_file_of_the_users_own_may_use_experiments_common(tmp_path):
  file = write(
    tmp_path / "mine.py",
    "from experiments.llm import common",
    "def get_config(arg=None):",
    "  config = common.base(arg)",
    "  config.steps = 3",
    "  return config",
  )
  assert config_lib.load(file).steps == 3


BODY = ("from experiments.llm import common", "def get_config(arg=None):")
USERS_MISTAKES = {
  "added key": (
    (*BODY, "  config = common.base(arg)", "  config.optim.lrr = 1", "  return config"),
    ("mine.py:4: AttributeError", "'lr'|\"lr\""),
  ),
  "misspelt group": (
    (*BODY, "  config = common.base(arg)", "  config.optm.lr = 1", "  return config"),
    ("mine.py:4: AttributeError: 'optm'", 'Did you mean "optim"'),
  ),
  "wrong type": (
    (*BODY, "  config = common.base(arg)", "  config.steps = 'many'", "  return config"),
    ("mine.py:4: TypeError", "'steps'"),
  ),
  "syntax": (("x = 1", "def get_config(arg=None:", "  pass"), ("mine.py:2: SyntaxError",)),
  "missing import": (("import nonesuch_module",), ("mine.py:1: ModuleNotFoundError", "nonesuch")),
  "no get_config": (("x = 1",), ("mine.py defines no get_config(arg=None)",)),
  "no argument": (("def get_config():", "  pass"), ("mine.py: TypeError", "get_config()")),
  "no return": ((*BODY, "  common.base(arg)"), ("mine.py: get_config returned NoneType",)),
  "bad argument": ((*BODY, "  return common.base('smke')"), ("'smke'. Did you mean 'smoke'?",)),
}


@pytest.mark.parametrize("name", USERS_MISTAKES)
def test_a_mistake_in_an_experiment_is_one_line_with_its_place(tmp_path, name):
  lines, says = USERS_MISTAKES[name]
  with pytest.raises(ConfigError) as error:
    config_lib.load(write(tmp_path / "mine.py", *lines))
  message = one_line(error)
  for words in says:
    assert any(word in message for word in words.split("|")), message


def test_a_mistake_in_a_file_that_the_experiment_calls_names_that_file(tmp_path):
  (tmp_path / "helper_of_mine.py").write_text("def helper():\n  return 1 / 0\n")
  file = write(
    tmp_path / "mine.py",
    f"import sys; sys.path.insert(0, {str(tmp_path)!r})",
    "import helper_of_mine; sys.path.pop(0)",
    "def get_config(arg=None):",
    "  return helper_of_mine.helper()",
  )
  with pytest.raises(ConfigError) as error:
    config_lib.load(file)
  assert "helper_of_mine.py:2: ZeroDivisionError" in one_line(error)


@pytest.mark.parametrize("path", ["experiments/llm/kdd.py", "no/such/folder/x.py", "experiments"])
def test_a_missing_file_is_named(path):
  with pytest.raises(ConfigError) as error:
    config_lib.load(path)
  assert path in one_line(error)


def test_a_missing_file_gets_a_suggestion(tmp_path):
  write(tmp_path / "mine.py", "x = 1")
  with pytest.raises(ConfigError) as error:
    config_lib.load(str(tmp_path / "mien.py"))
  assert f"Did you mean '{tmp_path / 'mine.py'}'?" in one_line(error)


def test_an_override_without_a_value_says_how():
  with pytest.raises(ConfigError) as error:
    config_lib.load(EXPERIMENT, ("steps",))
  assert one_line(error) == "--config.steps has no value: write --config.steps=VALUE."


def test_flatten_gives_every_leaf_once_with_its_dotted_key():
  assert dict(config_lib.flatten(small())) == {
    "steps": 10,
    "rate": 0.5,
    "name": "kd",
    "fast": False,
    "evals": ("a",),
    "free": None,
    "optim.lr": 1e-3,
    "optim.warmup": 2,
    "optim.inner.b1": 0.9,
  }


def test_saved_config_comes_back_and_differs_in_nothing(tmp_path):
  config = config_lib.load(f"{EXPERIMENT}:smoke", ("ema=(('power', 6.94),)",))
  assert config_lib.differences(config, tmp_path) == []  # no config.json there
  config_lib.save(config, tmp_path)
  assert config_lib.differences(config, tmp_path) == []
  loaded = config_lib.load_saved(tmp_path)
  assert json.loads(loaded.to_json()) == json.loads(config.to_json())
  assert loaded.is_locked
  versions = json.loads((tmp_path / "versions.json").read_text())
  assert set(versions) == {"distill_jax", "jax", "flax"}
  assert {p.name for p in tmp_path.iterdir()} == {"config.json", "versions.json"}


def test_differences_name_each_key_with_both_values(tmp_path):
  config_lib.save(small(), tmp_path)
  changed = small()
  changed.steps, changed.optim.inner.b1, changed.evals = 11, 0.8, ("a", "b")
  with changed.unlocked():
    changed.new = 1
    del changed.free
    del changed.name
  assert config_lib.differences(changed, tmp_path) == [
    "evals: ['a'] -> ['a', 'b']",
    "name: kd -> None",
    "new: None -> 1",
    "optim.inner.b1: 0.9 -> 0.8",
    "steps: 10 -> 11",
  ]


def test_no_saved_run_is_an_error_that_names_the_folder(tmp_path):
  with pytest.raises(ConfigError) as error:
    config_lib.load_saved(tmp_path / "nothing")
  assert str(tmp_path / "nothing") in one_line(error)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  file = tmp_path / "a.json"
  config_lib.write_whole(file, "old")

  def die(self, target):
    raise KeyboardInterrupt

  monkeypatch.setattr(pathlib.Path, "replace", die)
  with pytest.raises(KeyboardInterrupt):
    config_lib.write_whole(file, "new")
  assert file.read_text() == "old"
