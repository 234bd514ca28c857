"""Pictures of a table: learning curves, where every row ended, samples of every row and the way
to them."""

import pathlib
import statistics
from typing import Any

from distill_jax import metrics
from distill_jax.tables import Table, Values, runs, slug

COLORS = (
  "#4477AA",
  "#EE6677",
  "#228833",
  "#AA3377",
  "#CCBB44",
  "#66CCEE",
  "#BBBBBB",
)  # told apart by all
INK, PALE = "#222222", "#999999"


def draw(table: Table, values: Values, workdir: pathlib.Path, seeds: int) -> None:
  """Writes table.png into the work directory: one panel of curves and one of final values for each
  of `table.curves`."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  titles = {c.metric: c.title for c in table.columns}
  trained = [row.name for row in table.rows if not row.reference]
  color = dict(zip(trained, COLORS * len(trained), strict=False))
  style: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": PALE,
  }
  with plt.rc_context(style):
    figure, axes = plt.subplots(
      2,
      len(table.curves),
      figsize=(6.4 * len(table.curves), 7.6),
      height_ratios=(3, 2),
      squeeze=False,
    )
    for (curve, end), metric in zip(axes.T, table.curves, strict=True):
      for name in trained:
        _curve(curve, workdir / slug(name), seeds, metric, color[name])
      _ends(end, table, values, metric, color)
      curve.set(title=titles[metric], xlabel="steps")
      for row in table.rows:
        if row.reference and metric in values[row.name] and values[row.name][metric][0] > 0:
          level = values[row.name][metric][0]
          curve.axhline(level, color=PALE, lw=1, ls=":")
          curve.annotate(
            row.name,
            (1, level),
            xycoords=("axes fraction", "data"),
            color=PALE,
            va="bottom",
            ha="right",
          )
    figure.suptitle(table.title, fontsize=14, color=INK, x=0.01, ha="left")
    handles = [plt.Line2D([], [], color=color[name], lw=3, label=name) for name in trained]
    figure.legend(
      handles=handles,
      loc="upper left",
      bbox_to_anchor=(0, 0.955),
      ncols=len(trained),
      frameon=False,
    )
    figure.tight_layout(rect=(0, 0, 1, 0.92))
    figure.savefig(workdir / "table.png", dpi=150)
    plt.close(figure)


def _curve(axis, folder: pathlib.Path, seeds: int, metric: str, color: str) -> None:
  """The mean over seeds and, behind it, their range."""
  runs = [metrics.read(folder / str(seed) / "metrics.jsonl") for seed in range(seeds)]
  points = [
    {line["step"]: line[metric] for line in run if line.get(metric) is not None} for run in runs
  ]
  steps = sorted(set.intersection(*(set(p) for p in points)))
  columns = [[p[step] for p in points] for step in steps]
  axis.plot(steps, [statistics.fmean(c) for c in columns], color=color, lw=2.2)
  if seeds > 1:
    axis.fill_between(
      steps, [min(c) for c in columns], [max(c) for c in columns], color=color, alpha=0.2, lw=0
    )


def _ends(axis, table: Table, values: Values, metric: str, color: dict[str, str]) -> None:
  """Final values as dots, joined to the last reference row, the common start, if there is one."""
  names = [name for name in color if metric in values[name]][::-1]
  begins = [
    values[r.name][metric][0] for r in table.rows if r.reference and metric in values[r.name]
  ]
  for i, name in enumerate(names):
    mean = statistics.fmean(values[name][metric])
    error = statistics.stdev(values[name][metric]) if len(values[name][metric]) > 1 else 0.0
    if begins:
      axis.plot([begins[-1], mean], [i, i], color=color[name], lw=2.2, alpha=0.4)
    axis.errorbar(mean, i, xerr=error or None, color=color[name], marker="o", ms=9, capsize=4)
    axis.annotate(
      f"{mean:.3f}", (mean, i), (0, 9), textcoords="offset points", ha="center", color=INK
    )
  if begins:
    axis.axvline(begins[-1], color=PALE, lw=1, ls=":")
  axis.set_yticks(range(len(names)), names)
  axis.set_ylim(-0.5, len(names) - 0.2)
  axis.margins(x=0.12)
  column = next(c for c in table.columns if c.metric == metric)
  better = f" ({column.better} is better)" if column.better else ""
  axis.set_xlabel(f"{column.title} at the end{better}")
  axis.tick_params(axis="y", length=0)


def draw_samples(table: Table, workdir: pathlib.Path, seeds: int) -> None:
  """Writes samples.png into the work directory: `table.samples` of each row, of its first seed, and
  of the data first; points as a cloud, images as a grid. And trajectories.png: the way of a few of
  them from noise, for each row."""
  from distill_jax import sample, trajectories

  folders = {row.name: workdir / folder for row, folder, _ in reversed([*runs(table, seeds)])}
  panels: dict[str, Any] = {}
  ways = {}
  for row in table.rows:
    ways[row.name], real = sample.samples(folders[row.name], table.samples)
    panels.setdefault("data", real)
    panels[row.name] = ways[row.name].states[-1]
  sample.draw(panels, workdir / "samples.png", title=table.title)
  trajectories.draw(ways, panels["data"], workdir / "trajectories.png", title=table.title)
