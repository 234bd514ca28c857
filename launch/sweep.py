#!/usr/bin/env python3
"""One run for each row and seed of a table, through any launcher.

  python launch/sweep.py experiments/tables/quickstart.py --workdir runs/quickstart --seeds 3
    [--launcher "launch/slurm.sh --gpus 1"] [--dry-run]

Runs that are done (a result.json in their folder) are left out. The folders are those of
`python -m distill_jax.tables`, which prints the table from them afterwards.
"""

import argparse
import pathlib
import shlex
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from distill_jax import config, tables


def commands(table: tables.Table, workdir: pathlib.Path, seeds: int, launcher: str) -> list[list]:
  """The command of each run that is not done."""
  todo = []
  for row, name, seed in tables.runs(table, seeds):
    folder = workdir / name
    if (folder / "result.json").exists():
      continue
    overrides = [f"--config.{override}" for override in (*row.overrides, seed)]
    run = ["--config", row.config, "--workdir", str(folder), *overrides]
    todo.append([*shlex.split(launcher), *run])
  return todo


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
  parser.add_argument("table", help="experiments/tables/NAME.py[:arg]")
  parser.add_argument("--workdir", required=True, type=pathlib.Path)
  parser.add_argument("--seeds", type=int, default=1)
  parser.add_argument("--launcher", default="launch/local.sh", help="what starts one run")
  parser.add_argument("--dry-run", action="store_true", help="print the commands")
  args = parser.parse_args(argv)
  path, _, arg = args.table.partition(":")
  try:
    table = config.load_file(path).get_table(arg or None)
  except config.ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  failed = 0
  for command in commands(table, args.workdir, args.seeds, args.launcher):
    print(shlex.join(command), flush=True)
    if not args.dry_run:
      failed += subprocess.run(command).returncode != 0
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
