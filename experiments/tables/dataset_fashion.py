"""Fashion-MNIST at 1, 10 and 50 images per class: every family of dataset distillation and what it
has to beat, under one protocol.

The published protocol (distilled/protocol.py): ConvNet-3 of width 128, 1000 epochs of SGD on the
set with siamese augmentation, 3 networks, the last step of each; all 60,000 images, no selection.
Sets bring their own labels, and MTT its learned rate. `:cpu` is the same for every row with
ConvNet-3 of width 16 and at most 500 updates of each network, fewer real images in a step, fewer
steps and experts: its numbers are compared with each other, not with the papers'. `ipc=1`, `ipc=10`
or `ipc=50` is a third of the table.

Run:   python -m distill_jax.tables experiments/tables/dataset_fashion.py[:cpu]
  --workdir runs/dataset_fashion
Takes: `:cpu` 102 minutes of two cores that other work shared; the figures are in docs/datasets.md.
"""

from distill_jax.config import ConfigError, parse_arg
from distill_jax.tables import Claim, Column, Row, Table
from experiments.dataset.common import ALL

# name: experiment, words, published accuracy in percent at 1, 10 and 50 images, its source
METHODS = {
  "random": ("selection", "how=random", (51.4, 73.8, 82.5), "arXiv:2006.05929"),
  "herding": ("selection", "how=herding", (67.0, 71.1, 71.9), "arXiv:2006.05929"),
  "k-center": ("selection", "how=k_center", (66.9, 54.7, 68.3), "arXiv:2006.05929"),
  "k-means": ("selection", "how=k_means", None, ""),
  "DC": ("dc", "", (70.5, 82.3, 83.6), "arXiv:2006.05929"),
  "DSA": ("dc", "variant=dsa", (70.6, 84.6, 88.7), "arXiv:2102.08259"),
  "DM": ("dm", "", None, "arXiv:2110.04181"),
  "MTT": ("mtt", "", (75.1, 87.2, 88.3), "arXiv:2203.11932, by arXiv:2206.00719"),
  "KIP": ("kip", "", (73.5, 86.8, 88.0), "arXiv:2107.13034"),
  "FRePo": ("frepo", "", (75.6, 86.2, 89.6), "arXiv:2206.00719"),
  "SRe2L": ("sre2l", "", None, "arXiv:2306.13092"),
}
WHOLE = ("whole", "", 93.5, "arXiv:2006.05929")
IPC = (1, 10, 50)
ACCURACY = "distilled/accuracy"
PROTOCOL = (  # DC's own has 300 epochs and no augmentation
  "protocol.epochs=1000",
  f"protocol.augment={ALL}",
)
# a narrow budget: of every row, and of a method
CPU = ("models.student.width=16", "protocol.most_steps=500", "real_per_class=64")
CPU_OF = {
  "herding": ("method.epochs=3",),
  "k-center": ("method.epochs=3",),
  "k-means": ("method.epochs=3",),
  "DC": ("steps=150",),
  "DSA": ("steps=150",),
  "DM": ("steps=500",),
  "MTT": (
    "steps=150",
    "method.max_start=3",
    "method.syn_steps=20",
    "method.batch_syn=100",
    "method.experts.count=3",
    "method.experts.epochs=5",
  ),
  "KIP": ("steps=300",),
  "FRePo": ("steps=1000",),
  "SRe2L": ("steps=300",),
}


def get_table(arg=None):
  arg = parse_arg(arg, smoke=False, cpu=False, ipc=0)
  if arg.ipc not in (0, *IPC):
    raise ConfigError(f"ipc={arg.ipc}: 1, 10 or 50, or 0 for all of them.")
  sizes = [n for n in IPC if arg.ipc in (0, n)]
  every = (*(() if arg.smoke else PROTOCOL), *(CPU if arg.cpu else ()))

  def row(name, ipc):
    experiment, words, published, _ = METHODS[name]
    spec = ",".join(w for w in (f"data=fashion,ipc={ipc}", words, "smoke" * arg.smoke) if w)
    narrow = CPU_OF.get(name, ()) if arg.cpu else ()
    paper = {ACCURACY: published[IPC.index(ipc)] / 100} if published else {}
    path = f"experiments/dataset/{experiment}.py:{spec}"
    return Row(f"{name}, {ipc}", path, (*every, *narrow), paper=paper)

  def claim(name, ipc):
    _, _, published, source = METHODS[name]
    return Claim(
      f"{name} is better than random images, {ipc} per class",
      source,
      row=f"{name}, {ipc}",
      than=f"random, {ipc}",
      metric=ACCURACY,
      paper=None if arg.cpu or not published else published[IPC.index(ipc)] / 100,
      tolerance=0.01,
    )

  whole = Row(
    "whole data",
    "experiments/dataset/whole.py:data=fashion" + ",smoke" * arg.smoke,
    every,
    paper={ACCURACY: WHOLE[2] / 100},
    reference=True,
  )
  names = [name for name in METHODS if name != "random"]
  return Table(
    title="Fashion-MNIST, test accuracy of networks trained on a distilled set"
    + (" (ConvNet-3 of width 16, 500 updates)" if arg.cpu else ""),
    rows=(whole, *(row(name, ipc) for ipc in sizes for name in METHODS)),
    columns=(
      Column(ACCURACY, "test accuracy", ".1%", "higher"),
      Column("train/seconds", "seconds", ",.0f"),
    ),
    claims=tuple(claim(name, ipc) for ipc in sizes for name in names),
  )
