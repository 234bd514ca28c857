"""Tables of experiments: which rows run, what is printed and judged, and the picture."""

import json
import pathlib

import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import tables, train
from distill_jax.config import ConfigError
from distill_jax.tables import Claim, Column, Row, Table

BITS, KL, RATE = "language/bits_per_byte", "language/teacher_kl", "train/tokens_per_s"
SMOKE = "experiments/llm/sft.py:smoke"
COLUMNS = (
  Column(BITS, "bits per byte", ".3f", "lower"),
  Column(KL, "KL", ".2f", "lower"),
  Column("top1", "top-1", ".1%", "higher"),
  Column(RATE, "tokens/s", ",.0f"),
)
TABLE = Table(
  title="A title [of 3 rows]",
  rows=(
    Row("teacher", SMOKE, ("optim.lr=0.25", "steps=0"), reference=True),
    Row("cross-entropy", SMOKE, ("optim.lr=0.25",)),
    Row("forward KL [ours]", SMOKE, ("optim.lr=0.5",), paper={KL: 0.25}),
  ),
  columns=COLUMNS,
)
VALUES = {
  "teacher": {BITS: [1.0], KL: [0.0], RATE: [0.0]},
  "cross-entropy": {BITS: [2.0, 2.2], KL: [0.5, 0.7], "top1": [0.5, 0.5], RATE: [9e3, 11e3]},
  "forward KL [ours]": {BITS: [1.9, 2.1], KL: [0.2, 0.8], "top1": [0.6, 0.7], RATE: [5e3, 5e3]},
}
KD, CE = "forward KL [ours]", "cross-entropy"


@pytest.fixture
def runs(monkeypatch):
  """Stands in for training: notes each run and leaves what a run leaves."""
  made = []

  def run(config, workdir, *, title):
    made.append((title, config.seed, config.optim.lr, config.steps))
    workdir.mkdir(parents=True)
    config_lib.save(config, workdir)
    results = {BITS: 2.0 - config.optim.lr + config.seed / 10, KL: 0.5, RATE: 1000.0}
    first = 3.0 - config.optim.lr
    lines = [
      {"step": step, "seconds": 1.0, BITS: first / (1 + step), KL: None} for step in range(4)
    ]
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (workdir / "result.json").write_text(json.dumps(results))
    return results

  monkeypatch.setattr(train, "run", run)
  return made


def test_each_row_and_seed_runs_once_in_a_folder_of_its_own(tmp_path, runs):
  values = tables.run_rows(TABLE, tmp_path, seeds=2)
  assert runs == [
    ("teacher", 0, 0.25, 0),
    ("cross-entropy (seed=0)", 0, 0.25, 2),
    ("cross-entropy (seed=1)", 1, 0.25, 2),
    ("forward KL [ours] (seed=0)", 0, 0.5, 2),
    ("forward KL [ours] (seed=1)", 1, 0.5, 2),
  ]
  done = sorted(p.parent.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("result.json"))
  folders = ("cross-entropy/0", "cross-entropy/1", "forward-kl-ours/0", "forward-kl-ours/1")
  assert done == [*folders, "teacher/0"]
  assert values[KD][BITS] == [1.5, 1.6] and values["teacher"][RATE] == [1000.0]

  assert tables.run_rows(TABLE, tmp_path, seeds=2) == values
  assert len(runs) == 5  # a second call reads what is there
  tables.run_rows(TABLE, tmp_path, seeds=3)
  assert [title for title, *_ in runs[5:]] == [f"{CE} (seed=2)", f"{KD} (seed=2)"]


def test_a_row_without_a_result_is_run_again_and_nothing_else(tmp_path, runs):
  tables.run_rows(TABLE, tmp_path, seeds=1)
  folder = tmp_path / "cross-entropy/0"
  for file in folder.iterdir():  # as an interrupted run
    file.unlink()
  folder.rmdir()
  tables.run_rows(TABLE, tmp_path, seeds=1)
  assert [title for title, *_ in runs[3:]] == ["cross-entropy"]


def test_a_done_row_of_another_config_is_refused(tmp_path, runs):
  tables.run_rows(TABLE, tmp_path, seeds=1)
  row = TABLE.rows[2]._replace(overrides=("optim.lr=0.125",))
  changed = TABLE._replace(rows=(*TABLE.rows[:2], row))
  with pytest.raises(ConfigError) as error:
    tables.run_rows(changed, tmp_path, seeds=1)
  message = str(error.value)
  assert message.startswith(f"{tmp_path / 'forward-kl-ours/0'} was made with another config (")
  assert "(optim.lr: 0.5 -> 0.125)" in message and "delete it" in message and "\n" not in message


@pytest.mark.parametrize(
  "values, form, text",
  [
    ([1.23456], ".3f", "1.235"),
    ([1.0, 3.0], ".2f", "2.00 ± 1.41"),  # the deviation of a sample: sqrt(2)
    ([0.5, 0.5], ".1%", "50.0% ± 0.0%"),
    ([9e3, 11e3, 10e3], ",.0f", "10,000 ± 1,000"),
  ],
)
def test_spread(values, form, text):
  assert tables.spread(values, form) == text


def test_markdown():
  assert tables.markdown(TABLE, VALUES) == (
    "|  | bits per byte | KL | top-1 | tokens/s |\n"
    "| --- | ---: | ---: | ---: | ---: |\n"
    "| teacher | 1.000 | 0.00 |  | 0 |\n"
    "| cross-entropy | 2.100 ± 0.141 | 0.60 ± 0.14 | 50.0% ± 0.0% | 10,000 ± 1,414 |\n"
    "| forward KL [ours] | 2.000 ± 0.141 | 0.50 ± 0.42 (paper: 0.25) | 65.0% ± 7.1%"
    " | 5,000 ± 0 |\n"
  )


def test_a_bar_in_a_name_does_not_end_a_cell():
  table = Table("t", (Row("KL(p||q)", SMOKE),), COLUMNS[:1])
  text = tables.markdown(table, {"KL(p||q)": {BITS: [1.0]}})
  assert text.splitlines()[-1] == r"| KL(p\|\|q) | 1.000 |"


def test_best_is_of_trained_rows_by_their_mean():
  assert [tables.best(TABLE, VALUES, c) for c in COLUMNS] == [KD, KD, KD, None]
  assert tables.best(TABLE, VALUES, COLUMNS[0]._replace(better="higher")) == CE
  assert tables.best(TABLE, {**VALUES, KD: {}}, COLUMNS[0]) == CE
  assert tables.best(TABLE, {name: {} for name in VALUES}, COLUMNS[0]) is None


def test_show_prints_every_cell_as_it_is(capsys):
  tables.show(TABLE, VALUES)
  out = capsys.readouterr().out
  words = [cell for line in tables.cells(TABLE, VALUES)[1] for cell in line]
  for word in (TABLE.title, *words):  # names in brackets are no markup
    assert word in out


def test_judge_asks_every_seed():
  def claim(text, row, than, metric, **published):
    return Claim(text, "a paper", row=row, than=than, metric=metric, **published)

  table = TABLE._replace(
    claims=(
      claim("lower in both seeds", KD, CE, BITS, paper=1.8, tolerance=0.1),
      claim("and near the paper's", KD, CE, BITS, paper=1.95, tolerance=0.1),
      claim("near the paper's, but higher", CE, KD, BITS, paper=2.1, tolerance=0.1),
      claim("lower in one seed", KD, CE, KL),
      claim("higher in both seeds", KD, CE, "top1"),
      claim("never", CE, KD, "top1"),
      claim("against one value for all seeds", CE, "teacher", BITS),
      claim("not measured", KD, "teacher", "top1"),
    )
  )
  shared, lost = dict(source="a paper", theirs=""), "not reproduced (0 of 2 seeds)"
  bits = "2.000 ± 0.141 against 2.100 ± 0.141"
  assert tables.judge(table, VALUES) == [
    dict(
      claim="lower in both seeds",
      source="a paper",
      theirs="1.800",
      ours=bits,
      status="trend only",
    ),
    dict(
      claim="and near the paper's",
      source="a paper",
      theirs="1.950",
      ours=bits,
      status="reproduced",
    ),
    dict(
      claim="near the paper's, but higher",
      source="a paper",
      theirs="2.100",
      ours="2.100 ± 0.141 against 2.000 ± 0.141",
      status=lost,
    ),
    dict(
      claim="lower in one seed",
      ours="0.50 ± 0.42 against 0.60 ± 0.14",
      status="not reproduced (1 of 2 seeds)",
      **shared,
    ),
    dict(
      claim="higher in both seeds",
      ours="65.0% ± 7.1% against 50.0% ± 0.0%",
      status="trend only",
      **shared,
    ),
    dict(claim="never", ours="50.0% ± 0.0% against 65.0% ± 7.1%", status=lost, **shared),
    dict(
      claim="against one value for all seeds",
      ours="2.100 ± 0.141 against 1.000",
      status=lost,
      **shared,
    ),
    dict(claim="not measured", status="not run", **shared),
  ]


def test_a_tie_is_no_win():
  values = {**VALUES, KD: VALUES[CE]}
  table = TABLE._replace(claims=(Claim("c", "s", row=KD, than=CE, metric=BITS),))
  assert tables.judge(table, values)[0]["status"] == "not reproduced (0 of 2 seeds)"


def main(*argv) -> int:
  return tables.main([str(a) for a in argv])


def write_table(tmp_path, curves=True) -> pathlib.Path:
  file = tmp_path / "mine.py"
  file.write_text(
    "from distill_jax.tables import Claim, Column, Row, Table\n"
    "def get_table(arg=None):\n"
    f"  rows = (Row('a', {SMOKE!r}, ('optim.lr=0.0',)), Row('b', {SMOKE!r}, ('optim.lr=0.5',)))\n"
    f"  columns = (Column({BITS!r}, 'bits', '.2f', 'lower'),)\n"
    f"  claims = (Claim('b is lower', 'a paper', row='b', than='a', metric={BITS!r}),)\n"
    f"  return Table(arg or 'plain', rows, columns, claims, ({BITS!r},) if {curves} else ())\n"
  )
  return file


def test_the_command_runs_writes_records_and_then_only_prints(tmp_path, runs, capsys):
  file, workdir, record = write_table(tmp_path), tmp_path / "work", tmp_path / "record"
  command = f"{file}:named", "--workdir", workdir
  assert main(*command, "--record", record) == 0
  table = "|  | bits |\n| --- | ---: |\n| a | 2.00 |\n| b | 1.50 |\n"
  assert (workdir / "table.md").read_text() == f"named\n\n{table}"
  assert (workdir / "table.png").stat().st_size > 10_000
  written = json.loads((record / "mine_named.json").read_text())
  assert written["table"] == table and written["title"] == "named"
  assert written["command"].endswith(f"{file}:named --workdir runs/mine_named --seeds 1")
  assert written["claims"][0]["status"] == "trend only"
  assert written["machine"] and len(written["date"]) == 10
  first = capsys.readouterr().out
  assert main(*command) == 0
  assert len(runs) == 2 and capsys.readouterr().out == first


def test_a_table_without_curves_has_no_picture(tmp_path, runs, capsys):
  assert main(write_table(tmp_path, curves=False), "--workdir", tmp_path / "work") == 0
  assert not (tmp_path / "work/table.png").exists()
  assert capsys.readouterr().out.endswith("work/table.md\n")


@pytest.mark.parametrize(
  "text, options, says",
  [
    (None, (), "No file"),
    ("x = 1", (), "mine.py defines no get_table(arg=None)"),
    ("def get_table(): pass", (), "mine.py: TypeError: get_table() takes 0"),
    ("def get_table(arg=None):\n  return nonesuch", (), "mine.py:2: NameError"),
    ("def get_table(arg=None): pass", ("--seeds", 0), "--seeds must be at least 1, got 0."),
  ],
)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path, capsys, text, options, says):
  file = tmp_path / "mine.py"
  if text:
    file.write_text(text + "\n")
  assert main(file, "--workdir", tmp_path, *options) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and says in error and error.count("\n") == 1


def test_a_stopped_table_exits_0_and_one_that_diverged_1(tmp_path, monkeypatch, capsys):
  for error, code, says in (
    (train.Stopped("Stopped at step 3."), 0, "Stopped at step 3.\n"),
    (train.NonFinite("Step 3: loss"), 1, "error: Step 3: loss\n"),
  ):

    def run(*args, error=error, **kwargs):
      raise error

    monkeypatch.setattr(train, "run", run)
    assert main(write_table(tmp_path), "--workdir", tmp_path / "work") == code
    assert capsys.readouterr().err == says


def test_an_error_of_the_program_is_not_hidden(tmp_path, monkeypatch):
  def run(*args, **kwargs):
    raise RuntimeError("a bug")

  monkeypatch.setattr(train, "run", run)
  with pytest.raises(RuntimeError, match="a bug"):
    main(write_table(tmp_path), "--workdir", tmp_path / "work")


def test_machine_names_cores_and_processor():
  assert " cores, " in tables.machine()


def test_all_seeds_of_a_row_at_once_and_references_alone(tmp_path, monkeypatch):
  made = []

  def run(config, workdir, *, title):
    made.append((title, config.seeds, config.seed, workdir.relative_to(tmp_path).as_posix()))
    workdir.mkdir(parents=True)
    config_lib.save(config, workdir)
    each = {f"{BITS}@{i}": 2.0 + i for i in range(config.seeds)}
    results = {**(each if config.seeds > 1 else {BITS: 1.0}), RATE: 100.0}
    (workdir / "result.json").write_text(json.dumps(results))
    return results

  monkeypatch.setattr(train, "run", run)
  table = TABLE._replace(at_once=True, rows=TABLE.rows[:2])
  values = tables.run_rows(table, tmp_path, seeds=3)
  assert made == [
    ("teacher", 1, 0, "teacher/0"),
    ("cross-entropy (seeds=3)", 3, 0, "cross-entropy/all"),
  ]
  assert values[CE][BITS] == [2.0, 3.0, 4.0] and values["teacher"][BITS] == [1.0]
  assert values[CE][RATE] == [100.0]  # of the program, whose seeds are not told apart
  assert tables.cells(table, values)[1][1][1] == "3.000 ± 1.000"
  assert tables.run_rows(table, tmp_path, seeds=3) == values and len(made) == 2
  with pytest.raises(ConfigError, match="another config"):  # another number of seeds
    tables.run_rows(table, tmp_path, seeds=2)
  tables.run_rows(table, tmp_path, seeds=1)  # one seed is an ordinary run
  assert made[-1] == ("cross-entropy", 1, 0, "cross-entropy/0")


@pytest.mark.parametrize("at_once, folder", [(False, "0"), (True, "all")])
def test_samples_are_drawn_of_the_first_seed_of_each_row(tmp_path, monkeypatch, at_once, folder):
  from distill_jax import plots, sample, trajectories
  from distill_jax.evals.samples import Trajectory

  asked = []

  def samples(workdir, n):
    asked.append((workdir.relative_to(tmp_path).as_posix(), n))
    x = np.random.default_rng(len(asked)).normal(size=(3, n, 2))
    return Trajectory(x, np.array([80.0, 1.0, 0.0])), x[0]

  drawn = {}
  monkeypatch.setattr(sample, "samples", samples)
  monkeypatch.setattr(sample, "draw", lambda panels, out, title: drawn.update({out: panels}))
  monkeypatch.setattr(
    trajectories, "draw", lambda panels, real, out, title: drawn.update({out: panels})
  )
  plots.draw_samples(TABLE._replace(samples=5, at_once=at_once), tmp_path, seeds=2)
  rows = ["teacher/0", f"cross-entropy/{folder}", f"forward-kl-ours/{folder}"]
  assert asked == [(row, 5) for row in rows]
  panels = drawn[tmp_path / "samples.png"]
  assert [*panels] == ["data", "teacher", CE, KD] and panels["data"].shape == (5, 2)
  ways = drawn[tmp_path / "trajectories.png"]
  assert [*ways] == ["teacher", CE, KD]
  for name, way in ways.items():
    np.testing.assert_array_equal(panels[name], way.states[-1])
