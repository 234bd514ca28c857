"""One- and few-step students of one teacher on real images, class by class: one U-Net, one start,
one budget of network evaluations.

The teacher is assets/digits_denoiser at 18 Heun steps (35 evaluations a sample); every student
begins as the teacher. The budget is 9,000 evaluations of a batch of 64, where the gradient of an
evaluation counts as two more and a jvp as one; the last column of ROWS counts the teacher, the
student and the fake score of a step, and the teacher's 35 where a step solves its ODE.

Feature FID is by the features of assets/digits_classifier: it is not the FID of Inception's.
`data=fashion` is the same with `teacher=` and `features=` folders of one's own.

Run:   python -m distill_jax.tables experiments/tables/digits.py --workdir runs/digits
Takes: see docs/ledger.md. `smoke` is a matter of minutes, for compiling.
"""

from distill_jax.config import parse_arg
from distill_jax.tables import Claim, Column, Row, Table
from experiments.diffusion.common import STARTS

BUDGET = 9_000
# name: experiment, words after the colon, evaluations a step
ROWS = {
  "ODE pairs": ("ode_pairs", "", 38),
  "progressive": ("progressive", "", 5),
  "CD": ("consistency", "", 6),
  "ECT": ("consistency", "variant=ect", 4),
  "sCD": ("scm", "", 5),
  "MeanFlow, distilled": ("meanflow", "variant=distilled", 5),
  "Diff-Instruct": ("diff_instruct", "", 9),
  "DMD": ("dmd", "", 44),
  "DMD2": ("dmd2", "", 8.6),
  "DMD2, 4 steps": ("dmd2", "steps=4", 11),
  "SiD": ("sid", "", 13),
  "SiDA": ("sid", "variant=sida", 17),
  "adversarial": ("adversarial", "", 10),
}
EMA = "ema=(('power', 6.94),)"  # over the last tenth of a run, however short it is
FID, ACCURACY = "samples/feature_fid", "samples/class_accuracy"


def get_table(arg=None):
  arg = parse_arg(arg, smoke=False, data="digits", teacher="", features="")
  words = f"data={arg.data}" + (",smoke" if arg.smoke else "")
  given = [f"pretrained.teacher={arg.teacher}"] if arg.teacher else []
  given += [f"features={arg.features}"] if arg.features else []

  def row(name, experiment, more, cost):
    steps = round(BUDGET / cost)
    warm = ("method.tangent_warmup=200",) if experiment == "scm" else ()  # of 1000 for long runs
    spec = f"experiments/diffusion/{experiment}.py:{words}" + (f",{more}" if more else "")
    budget = () if arg.smoke else (f"steps={steps}", f"eval_every={steps}", f"save_every={steps}")
    average = () if experiment == "progressive" else (EMA,)
    return Row(name, spec, (*given, *budget, *average, *warm))

  def teacher(steps):
    start = f"pretrained.start={arg.teacher or STARTS.get(arg.data, '')}"
    heun = ("steps=0", "sampler.name=heun", f"sampler.steps={steps}", start, *given)
    spec = f"experiments/diffusion/denoising.py:{words}"
    return Row(f"teacher, {steps} Heun steps", spec, heun, reference=True)

  return Table(
    title="optdigits: one- and few-step students of one teacher, one budget of evaluations",
    rows=(teacher(18), teacher(2), *(row(name, *of) for name, of in ROWS.items())),
    columns=(
      Column(FID, "feature FID", ".2f", "lower"),
      Column(ACCURACY, "class accuracy", ".1%", "higher"),
      Column("samples/precision", "precision", ".1%", "higher"),
      Column("samples/recall", "recall", ".1%", "higher"),
      Column("train/seconds", "seconds", ",.0f"),
    ),
    samples=36,
    claims=(
      Claim(
        "One step of DMD is better than the consistency distillation of the same teacher",
        "Yin et al., arXiv:2311.18828, table 1",
        row="DMD",
        than="CD",
        metric=FID,
      ),
      Claim(
        "A GAN and more updates of the fake score make DMD better without its regression",
        "Yin et al., arXiv:2405.14867, table 3",
        row="DMD2",
        than="DMD",
        metric=FID,
      ),
      Claim(
        "SiD is better than Diff-Instruct",
        "Zhou et al., arXiv:2404.04057, table 1",
        row="SiD",
        than="Diff-Instruct",
        metric=FID,
      ),
      Claim(
        "A discriminator makes SiD better at equal budget",
        "Zhou et al., arXiv:2410.14919",
        row="SiDA",
        than="SiD",
        metric=FID,
      ),
      Claim(
        "Continuous-time consistency is better than discrete",
        "Lu and Song, arXiv:2410.11081",
        row="sCD",
        than="CD",
        metric=FID,
      ),
      Claim(
        "Four steps are better than one",
        "Yin et al., arXiv:2405.14867",
        row="DMD2, 4 steps",
        than="DMD2",
        metric=FID,
      ),
    ),
  )
