"""distill_jax/losses imports jax, a few of Python's own modules, and itself."""

import ast
import pathlib

import pytest

import distill_jax.losses

ALLOWED = {"jax", "typing", "collections.abc", "functools", "inspect", "math"}
FILES = sorted(pathlib.Path(distill_jax.losses.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      modules = [node.module]
    else:
      continue
    for module in modules:
      allowed = module in ALLOWED or module.split(".")[0] in ALLOWED
      assert allowed or module.startswith("distill_jax.losses"), f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_length(path):
  assert len(path.read_text().splitlines()) <= 300
