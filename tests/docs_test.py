"""The generated pages are those of the code, and what the pages link to is there."""

import importlib.util
import json
import pathlib
import re
import sys

import pytest

import distill_jax

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
METHODS = [p for p in sorted(ROOT.glob("distill_jax/methods/**/*.py")) if p.name != "__init__.py"]

_spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)


def test_generated_pages_are_fresh(capsys):
  assert generate.main(["--check"]) == 0, capsys.readouterr().err


@pytest.fixture
def project(tmp_path, monkeypatch):
  """A project of one method, one experiment and one recorded table."""
  monkeypatch.setattr(sys, "path", [*sys.path])  # loading an experiment adds its project
  method = tmp_path / "distill_jax/methods/toy/half.py"
  experiment = tmp_path / "experiments/toy/small.py"
  record = tmp_path / "docs/results/toy.json"
  for file in (method, experiment, record):
    file.parent.mkdir(parents=True)
  method.write_text(
    '"""Half.\n\nPaper: Doe, On Halves,\n  and Wholes (arXiv:2401.00001), eq. 2\n  and 3.\n"""\n'
  )
  (tmp_path / "experiments/common.py").write_text("")
  experiment.write_text(
    "from ml_collections import ConfigDict\n\n\ndef get_config(arg=None):\n"
    "  return ConfigDict(dict(method=dict(name='toy.half')))\n"
  )
  claims = [
    dict(claim="a | b", source="Doe, arXiv:2401.00001", theirs="", ours="1", status="trend only"),
    dict(claim="c", source="Doe, arXiv:2401.00001", theirs="9", status="not run"),
    dict(claim="d", source="Roe, arXiv:2402.00002", theirs="", status="reproduced"),
  ]
  facts = dict(
    title="Toys", command="go --now", machine="a box", date="2026-01-02", table="| T |\n"
  )
  record.write_text(json.dumps(dict(facts, claims=claims)))
  return tmp_path


def test_papers_page(project):
  row = generate.papers_page(project).splitlines()[-1]
  assert row == (
    "| [Doe, On Halves, and Wholes](https://arxiv.org/abs/2401.00001) | eq. 2 and 3 "
    "| [toy/half.py](../distill_jax/methods/toy/half.py) "
    "| [toy/small.py](../experiments/toy/small.py) | trend only, not run |"
  )


def test_ledger_page(project):
  text = generate.ledger_page(project)
  for part in ("## Toys", "`go --now`", "2026-01-02, on a box.", "| T |", r"| a \| b |"):
    assert part in text
  source = "Doe, [arXiv:2401.00001](https://arxiv.org/abs/2401.00001)"
  assert text.splitlines()[-2] == f"| c | {source} | 9 |  | not run |"


def test_a_malformed_entry_names_its_file(project):
  file = project / "distill_jax/methods/toy/half.py"
  file.write_text('"""Half.\n\nPaper: Doe, On Halves, 2024.\n"""\n')
  with pytest.raises(ValueError, match=r"methods/toy/half\.py: 'Doe, On Halves, 2024\.'"):
    generate.papers(project)


def test_check_names_the_stale_file(project, monkeypatch, capsys):
  monkeypatch.setattr(generate, "ROOT", project)
  assert generate.main([]) == 0 and generate.main(["--check"]) == 0
  (project / "docs/ledger.md").write_text("old")
  assert generate.main(["--check"]) == 1
  assert "docs/ledger.md stale" in capsys.readouterr().err


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
def test_arxiv_ids(path):
  """Every mention is `arXiv:YYMM.number`, four digits until 2014 and five since."""
  text = path.read_text()
  mentions = re.findall(r"arxiv\S{0,20}", text, re.IGNORECASE)
  for mention in mentions:
    match = re.match(r"arXiv:(\d\d)(0[1-9]|1[0-2])\.(\d{4,5})(?!\d)", mention)
    assert match, f"{path}: {mention}"
    assert len(match[3]) == (4 if int(match[1]) < 15 else 5), f"{path}: {mention}"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_relative_links(path):
  text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
  links = re.findall(r"\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"", text)
  for link in ("".join(pair) for pair in links):
    if re.match(r"[a-z]+:", link):
      continue
    file, _, anchor = link.partition("#")
    target = (path.parent / file).resolve() if file else path
    assert target.exists(), f"{path.name}: {link}"
    if anchor and target.suffix == ".md":
      assert anchor in _anchors(target), f"{path.name}: {link}"


def _anchors(path):
  """GitHub's names of a page's headings."""
  headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_one_version():
  version = distill_jax.__version__
  assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
  assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
