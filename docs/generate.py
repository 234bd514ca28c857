"""Writes docs/papers.md and docs/ledger.md.

  python docs/generate.py [--check]

`papers.md` maps papers to method files, from the `Paper:` entries of their docstrings, to the
configs that run them, and to what was measured. `ledger.md` lists every recorded table with its
claims, from docs/results/*.json, which `python -m distill_jax.tables ... --record docs/results`
writes. With --check nothing is written; exit code 1 and the file's name if one is stale.
"""

import argparse
import ast
import inspect
import json
import pathlib
import re
import sys
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the checkout of this file, installed or not

from distill_jax.config import load_file  # noqa: E402 (needs the path)

ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
ENTRY = re.compile(r"^Paper:((?:.*)(?:\n[ ]+\S.*)*)", re.MULTILINE)
CITATION = re.compile(r"(?P<citation>.+) \(arXiv:(?P<arxiv>[^()]+)\)(?:, (?P<where>.+?))?\.?")

PAPERS = """# Papers

Made by `python docs/generate.py` from the docstrings of the method files; do not edit. Status is
that of the claims in the [ledger](ledger.md) that name the paper.
"""

LEDGER = """# Ledger

Made by `python docs/generate.py` from `docs/results`; do not edit. A table gets there by
`python -m distill_jax.tables TABLE --workdir DIR --seeds N --record docs/results`.

- reproduced: the paper's number, in the paper's setting.
- trend only: the claim's direction held for every seed, in a setting smaller than the paper's.
- not reproduced: it did not hold for every seed; in brackets, for how many it did.
- not run: nothing has been measured.
"""


class Paper(NamedTuple):
  """One `Paper:` entry of a docstring."""

  citation: str  # authors, title
  arxiv: str
  where: str  # equation or section
  file: str  # relative to the project


def papers(root: pathlib.Path) -> list[Paper]:
  """The entries of all method files, by file.

  Raises:
    ValueError: an entry is not of the form `Authors, Title (arXiv:NNNN.NNNNN), equation.`
  """
  found = []
  for path in sorted(root.glob("distill_jax/methods/**/*.py")):
    text = inspect.cleandoc(ast.get_docstring(ast.parse(path.read_text())) or "")
    file = path.relative_to(root).as_posix()
    for entry in ENTRY.findall(text):
      words = " ".join(entry.split())
      match = CITATION.fullmatch(words)
      if not match:
        raise ValueError(
          f"{file}: {words!r} is not of the form 'Authors, Title (arXiv:NNNN.NNNNN), equation.'"
        )
      found.append(Paper(match["citation"], match["arxiv"], match["where"] or "", file))
  return found


def configs(root: pathlib.Path) -> dict[str, list[str]]:
  """Method file -> the experiments that use it, relative to the project."""
  users: dict[str, list[str]] = {}
  for path in sorted(root.glob("experiments/**/*.py")):
    module = load_file(str(path))
    if hasattr(module, "get_config"):
      name = module.get_config().method.name
      file = f"distill_jax/methods/{name.replace('.', '/')}.py"
      users.setdefault(file, []).append(path.relative_to(root).as_posix())
  return users


def records(root: pathlib.Path) -> list[dict[str, Any]]:
  """The recorded tables, by file name."""
  return [json.loads(path.read_text()) for path in sorted(root.glob("docs/results/*.json"))]


def status(arxiv: str, tables: list[dict[str, Any]]) -> str:
  """What the claims that name a paper came to, each outcome once."""
  claims = [claim for table in tables for claim in table["claims"]]
  known = [c["status"] for c in claims if arxiv in ARXIV.findall(c["source"])]
  return ", ".join(dict.fromkeys(known)) or "not run"


def papers_page(root: pathlib.Path) -> str:
  """The text of docs/papers.md."""
  users, tables = configs(root), records(root)
  rows = [
    (
      f"[{paper.citation}](https://arxiv.org/abs/{paper.arxiv})",
      paper.where,
      _link(paper.file, "distill_jax/methods/"),
      ", ".join(_link(file, "experiments/") for file in users.get(paper.file, [])),
      status(paper.arxiv, tables),
    )
    for paper in papers(root)
  ]
  return PAPERS + "\n" + _table(("paper", "equation", "file", "configs", "status"), rows)


def ledger_page(root: pathlib.Path) -> str:
  """The text of docs/ledger.md."""
  sections = [_section(record) for record in records(root)]
  return "\n".join([LEDGER, *(sections or ["No table has been recorded yet.\n"])])


def _section(record: dict[str, Any]) -> str:
  columns = ("claim", "source", "theirs", "ours", "status")
  rows = [tuple(claim.get(column, "") for column in columns) for claim in record["claims"]]
  rows = [
    (claim, ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", source), *rest)
    for claim, source, *rest in rows
  ]
  head = f"## {record['title']}\n\n`{record['command']}`\n"
  place = f"{record['date']}, on {record['machine']}.\n"
  return "\n".join([head, place, record["table"], *([_table(columns, rows)] if rows else [])])


def _table(header, rows) -> str:
  lines = [header, ["---"] * len(header), *rows]
  escaped = [[str(cell).replace("|", r"\|") for cell in line] for line in lines]
  return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def _link(file: str, prefix: str) -> str:
  return f"[{file.removeprefix(prefix)}](../{file})"


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog="python docs/generate.py", allow_abbrev=False)
  parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if one is stale")
  check = parser.parse_args(argv).check
  stale = []
  for name, page in (("papers.md", papers_page(ROOT)), ("ledger.md", ledger_page(ROOT))):
    path = ROOT / "docs" / name
    if not path.exists() or path.read_text() != page:
      stale.append(f"docs/{name}")
      if not check:
        path.write_text(page)
  if check and stale:
    print(f"error: {' and '.join(stale)} stale: run python docs/generate.py", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
