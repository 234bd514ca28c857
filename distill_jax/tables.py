"""Tables of experiments: runs the rows that are not done yet, then prints, writes and draws the
table.

  python -m distill_jax.tables experiments/tables/quickstart.py[:arg] --workdir runs/quickstart
  --seeds 3

A table file has `get_table(arg=None) -> Table`. Each row and seed has a folder of its own under the
work directory; one that holds a result.json is done. The rest is ordinary training, so an
interrupted table continues where it stopped.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import statistics
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from distill_jax import config as config_lib
from distill_jax.config import ConfigError


class Row(NamedTuple):
  """An experiment with overrides; `paper` holds the published values by metric."""

  name: str
  config: str
  overrides: tuple[str, ...] = ()
  paper: dict[str, float] = {}
  reference: bool = False  # the same for every seed, drawn as a line: a teacher, a start


class Column(NamedTuple):
  """A metric of result.json; `better` is "lower", "higher" or "" for what is no contest."""

  metric: str
  title: str
  format: str = ".3f"
  better: str = ""


class Claim(NamedTuple):
  """What a paper says and this table can show: `row` is better than `than` by `metric`.

  A published value of that metric in the same setting is reproduced if ours is within `tolerance`.
  """

  text: str
  source: str
  row: str
  than: str
  metric: str
  paper: float | None = None
  tolerance: float = 0.0


class Table(NamedTuple):
  title: str
  rows: tuple[Row, ...]
  columns: tuple[Column, ...]
  claims: tuple[Claim, ...] = ()
  curves: tuple[str, ...] = ()  # metrics of metrics.jsonl that the picture draws over training
  at_once: bool = False  # all seeds of a row in one program (config.seeds); without curves
  samples: int = 0  # so many of every row, side by side in samples.png and trajectories.png


Values = dict[str, dict[str, list[float]]]  # row -> metric -> one value for each seed


def runs(table: Table, seeds: int) -> Iterator[tuple[Row, str, str]]:
  """Each run of a table: its row, its folder under the work directory, the override of its seed."""
  for row in table.rows:
    if table.at_once and seeds > 1 and not row.reference:
      yield row, f"{slug(row.name)}/all", f"seeds={seeds}"
      continue
    for seed in range(1 if row.reference else seeds):
      yield row, f"{slug(row.name)}/{seed}", f"seed={seed}"


def run_rows(table: Table, workdir: pathlib.Path, seeds: int) -> Values:
  """Runs what is missing; the results of all rows and seeds."""
  values: Values = {}
  for row, folder, override in runs(table, seeds):
    config = config_lib.load(row.config, (*row.overrides, override))
    title = row.name + (f" ({override})" if seeds > 1 and not row.reference else "")
    for metric, value in _result(config, workdir / folder, title).items():
      metric = metric.partition("@")[0]  # of several seeds at once, NAME@SEED
      values.setdefault(row.name, {}).setdefault(metric, []).append(value)
  return values


def _result(config, folder: pathlib.Path, title: str) -> dict[str, float]:
  done = folder / "result.json"
  if not done.exists():
    from distill_jax import train

    return train.run(config, folder, title=title)
  if changes := config_lib.differences(config, folder):
    raise ConfigError(
      f"{folder} was made with another config ({changes[0]}): delete it, or use another --workdir."
    )
  return json.loads(done.read_text())


def slug(name: str) -> str:
  """A folder's name for a row's."""
  return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def spread(values: list[float], form: str) -> str:
  """Mean, and standard deviation over seeds where there are several."""
  text = format(statistics.fmean(values), form)
  return f"{text} ± {format(statistics.stdev(values), form)}" if len(values) > 1 else text


def cells(table: Table, values: Values) -> tuple[list[str], list[list[str]]]:
  """Header and body of the table as text; a published value stands behind ours."""
  header, body = [""] + [c.title for c in table.columns], []
  for row in table.rows:
    line = [row.name]
    for column in table.columns:
      ours = values[row.name].get(column.metric)
      text = spread(ours, column.format) if ours else ""
      if column.metric in row.paper:
        text += f" (paper: {format(row.paper[column.metric], column.format)})"
      line.append(text)
    body.append(line)
  return header, body


def markdown(table: Table, values: Values) -> str:
  header, body = cells(table, values)
  rule = ["---"] + ["---:"] * len(table.columns)
  lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, rule, *body)]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def show(table: Table, values: Values) -> None:
  """The table on the terminal, the best trained row of each column in bold."""
  from rich.console import Console
  from rich.table import Table as Rich
  from rich.text import Text

  header, body = cells(table, values)
  winners = ["", *(best(table, values, column) for column in table.columns)]
  rich = Rich(title=Text(table.title, "italic"))
  for i, title in enumerate(header):
    rich.add_column(Text(title), justify="right" if i else "left", no_wrap=not i)
  for row, line in zip(table.rows, body, strict=True):
    styles = ["bold" if row.name == winner else "" for winner in winners]
    texts = [Text(text, style) for text, style in zip(line, styles, strict=True)]
    rich.add_row(*texts, style="dim" if row.reference else None)
  Console(width=None if sys.stdout.isatty() else 120).print(rich)


def best(table: Table, values: Values, column: Column) -> str | None:
  """The trained row with the best mean."""
  rows = [r.name for r in table.rows if not r.reference and column.metric in values[r.name]]
  if not column.better or not rows:
    return None
  pick = min if column.better == "lower" else max
  return pick(rows, key=lambda name: statistics.fmean(values[name][column.metric]))


def judge(table: Table, values: Values) -> list[dict[str, Any]]:
  """Each claim against the numbers: it holds when it holds for every seed."""
  columns = {c.metric: c for c in table.columns}
  rows = []
  for claim in table.claims:
    column = columns[claim.metric]
    theirs = "" if claim.paper is None else format(claim.paper, column.format)
    verdict: dict[str, Any] = dict(claim=claim.text, source=claim.source, theirs=theirs)
    ours, other = (values[name].get(claim.metric) for name in (claim.row, claim.than))
    if ours and other:
      sign = 1 if column.better == "lower" else -1
      rivals = other * len(ours) if len(other) == 1 else other  # a reference row runs once
      wins = sum(sign * a < sign * b for a, b in zip(ours, rivals, strict=True))
      near = (
        claim.paper is not None and abs(statistics.fmean(ours) - claim.paper) <= claim.tolerance
      )
      held = "reproduced" if near else "trend only"
      verdict["ours"] = f"{spread(ours, column.format)} against {spread(other, column.format)}"
      verdict["status"] = (
        held if wins == len(ours) else f"not reproduced ({wins} of {len(ours)} seeds)"
      )
    rows.append(verdict if "status" in verdict else dict(verdict, status="not run"))
  return rows


def machine() -> str:
  """Cores and processor or accelerator, for the record."""
  import jax

  device = jax.devices()[0]
  if device.platform != "cpu":
    return f"{jax.device_count()} x {device.device_kind}"
  info = pathlib.Path("/proc/cpuinfo")
  names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
  return f"{os.cpu_count()} cores, {names[0] if names else platform.processor()}"


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog="python -m distill_jax.tables", allow_abbrev=False)
  parser.add_argument("table", help="experiments/tables/NAME.py[:arg]")
  parser.add_argument("--workdir", required=True, type=pathlib.Path)
  parser.add_argument("--seeds", type=int, default=1)
  parser.add_argument("--record", type=pathlib.Path, help="also write the figures into this folder")
  args = parser.parse_args(argv)
  try:
    path, _, arg = args.table.partition(":")
    module = config_lib.load_file(path)
    if not hasattr(module, "get_table"):
      raise ConfigError(f"{path} defines no get_table(arg=None), so it is not a table.")
    if args.seeds < 1:
      raise ConfigError(f"--seeds must be at least 1, got {args.seeds}.")
    table: Table = config_lib.in_file(path, module.get_table, arg or None)
    values = run_rows(table, args.workdir, args.seeds)
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except Exception as error:
    from distill_jax import train  # imported by then: only a run raises these

    if isinstance(error, train.Stopped):
      print(error, file=sys.stderr)
      return 0
    if isinstance(error, train.NonFinite):
      print(f"error: {error}", file=sys.stderr)
      return 1
    raise
  show(table, values)
  (args.workdir / "table.md").write_text(f"{table.title}\n\n{markdown(table, values)}")
  if table.curves:
    from distill_jax.plots import draw

    draw(table, values, args.workdir, args.seeds)
  if table.samples:
    from distill_jax.plots import draw_samples

    draw_samples(table, args.workdir, args.seeds)
  pictures = dict(table=table.curves, samples=table.samples, trajectories=table.samples)
  files = ["table.md", *(f"{name}.png" for name, wanted in pictures.items() if wanted)]
  print("Written: " + ", ".join(f"{args.workdir}/{file}" for file in files))
  if args.record:
    name = re.sub(r"\W+", "_", f"{pathlib.Path(path).stem} {arg}".strip())
    record = dict(
      title=table.title,
      command=f"python -m distill_jax.tables {args.table} --workdir runs/{name} "
      f"--seeds {args.seeds}",
      machine=machine(),
      date=datetime.date.today().isoformat(),
      table=markdown(table, values),
      claims=judge(table, values),
    )
    args.record.mkdir(parents=True, exist_ok=True)
    (args.record / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
