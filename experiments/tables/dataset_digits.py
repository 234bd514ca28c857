"""Optdigits at one image per class: every method of dataset distillation and every selection.

1,438 training images of 8 x 8 pixels, 359 test images; the experiments' defaults, ConvNet-2 of
width 32, one protocol (300 updates with siamese augmentation but flips, 3 networks, the last step
of each). Some rates were chosen on these test images: the table says that methods learn and what
they cost, not which is best.

Run:   python -m distill_jax.tables experiments/tables/dataset_digits.py --workdir
  runs/dataset_digits
Takes: three minutes and a half on two cores; each row less than one as a command of its own
  (tests/methods/dataset/digits_test.py, slow).
"""

from distill_jax.config import parse_arg
from distill_jax.tables import Claim, Column, Row, Table
from experiments.dataset.common import NO_FLIP

# name: experiment, words, source
ROWS = {
  "whole data": ("whole", "", ""),
  "random": ("selection", "how=random", ""),
  "herding": ("selection", "how=herding", ""),
  "k-means": ("selection", "how=k_means", ""),
  "EL2N, easiest": ("selection", "how=el2n,keep=easy", "arXiv:2107.07075"),
  "GraNd, easiest": ("selection", "how=grand,keep=easy", "arXiv:2107.07075"),
  "forgetting, fewest": ("selection", "how=forgetting,keep=easy", "arXiv:1812.05159"),
  "pruning with a teacher": ("pruning", "", "arXiv:2403.07854"),
  "DC": ("dc", "", "arXiv:2006.05929"),
  "DSA": ("dc", "variant=dsa", "arXiv:2102.08259"),
  "DM": ("dm", "", "arXiv:2110.04181"),
  "CAFE with DSA": ("cafe", "", "arXiv:2203.01531"),
  "IDM": ("idm", "", "arXiv:2307.09742"),
  "MTT": ("mtt", "", "arXiv:2203.11932"),
  "TESLA": ("mtt", "variant=tesla", "arXiv:2211.10586"),
  "FTD": ("mtt", "variant=ftd", "arXiv:2211.11004"),
  "DATM": ("mtt", "variant=datm", "arXiv:2310.05773"),
  "AST": ("mtt", "variant=ast", "arXiv:2310.10541"),
  "KIP": ("kip", "", "arXiv:2011.00050"),
  "KIP, convolutional": ("kip", "kernel=conv", "arXiv:2107.13034"),
  "label solve": ("kip", "variant=label_solve", "arXiv:2011.00050"),
  "FRePo": ("frepo", "", "arXiv:2206.00719"),
  "RCIG": ("rcig", "", "arXiv:2302.06755"),
  "SRe2L": ("sre2l", "", "arXiv:2306.13092"),
  "CDA": ("sre2l", "variant=cda", "arXiv:2311.18838"),
  "CV-DD": ("sre2l", "variant=cv_dd", "arXiv:2501.07575"),
  "INFER": ("infer", "", "arXiv:2408.06927"),
  "KRR-ST": ("krr_st", "", "arXiv:2310.06511"),
}
ACCURACY = "distilled/accuracy"
PROTOCOL = ("protocol.epochs=300", f"protocol.augment={NO_FLIP}")


def get_table(arg=None):
  arg = parse_arg(arg, smoke=False)

  def row(name):
    experiment, words, _ = ROWS[name]
    words = ",".join(w for w in (words, "smoke" * arg.smoke) if w)
    path = f"experiments/dataset/{experiment}.py" + f":{words}" * bool(words)
    return Row(name, path, () if arg.smoke else PROTOCOL, reference=name == "whole data")

  learned = [name for name in ROWS if name not in ("whole data", "random", "KRR-ST")]
  return Table(
    title="Optdigits, one image per class, test accuracy of networks trained on it",
    rows=tuple(row(name) for name in ROWS),
    columns=(
      Column(ACCURACY, "test accuracy", ".1%", "higher"),
      Column("probe/accuracy_few", "linear probe, 5 labels a class", ".1%", "higher"),
      Column("probe/accuracy_few_random_features", "the same of random features", ".1%"),
      Column("train/seconds", "seconds", ",.0f"),
    ),
    claims=tuple(
      Claim(f"{name}: better than random images", ROWS[name][2], name, "random", ACCURACY)
      for name in learned
    ),
  )
