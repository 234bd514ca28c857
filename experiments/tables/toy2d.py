"""Twenty-five modes in the plane, an exact teacher, every one- and few-step method: one network,
one start, one budget of network evaluations.

The budget is 12,000 evaluations of a batch of 256, where the gradient of an evaluation counts as
two more and a jvp as one. The last column of ROWS is what a step takes by XLA's count of FLOPs,
less what a side that rests in it would. Steps = budget / cost. The exact teacher is free.

Run:   python -m distill_jax.tables experiments/tables/toy2d.py --workdir runs/toy2d --seeds 3
Takes: 31 minutes on two cores. `smoke` is a matter of seconds.
"""

from distill_jax.config import parse_arg
from distill_jax.tables import Claim, Column, Row, Table

BUDGET = 12_000
# name: experiment, words after the colon, evaluations a step
ROWS = {
  "progressive": ("progressive", "", 5.1),
  "ODE pairs": ("ode_pairs", "", 3.1),
  "reflow": ("reflow", "", 3.1),
  "CD": ("consistency", "", 4.1),
  "CT": ("consistency", "variant=ct", 4.1),
  "iCT": ("consistency", "variant=ict", 4.8),
  "ECT": ("consistency", "variant=ect", 4.1),
  "LCM": ("lcm", "", 4.1),
  "sCD": ("scm", "", 4.1),
  "sCT": ("scm", "variant=sct", 4.1),
  "TBCM": ("tbcm", "", 4.1),
  "rCM": ("rcm", "", 8.1),
  "shortcut": ("shortcut", "", 5.1),
  "MeanFlow": ("meanflow", "", 4.0),
  "improved MeanFlow": ("meanflow", "variant=improved", 6.6),
  "BOOT": ("boot", "", 6.4),
  "Diff-Instruct": ("diff_instruct", "", 8.1),
  "DMD": ("dmd", "", 8.2),
  "decoupled DMD": ("decoupled_dmd", "", 8.2),
  "DisBack": ("disback", "", 9.1),
  "DMD2": ("dmd2", "", 8.2),
  "DMD2, 4 steps": ("dmd2", "steps=4", 11.2),
  "f-distill, JS": ("dmd2", "divergence=js", 8.2),
  "SiD": ("sid", "", 8.8),
  "SiDA": ("sid", "variant=sida", 12.9),
  "adversarial": ("adversarial", "", 9.5),
  "multi-student": ("multi_student", "", 9.5),
  "MMD": ("mmd", "", 3.7),
  "phased DMD, 2 steps": ("phased_dmd", "", 9.2),
  "multistep CM, 2 steps": ("multistep_consistency", "", 4.1),
}
QUALITY = "samples/energy"
EMA = "ema=(('power', 6.94),)"  # over the last tenth of a run, however short it is


def get_table(arg=None):
  smoke = parse_arg(arg, smoke=False).smoke

  def row(name, experiment, words, cost):
    words = ",".join(word for word in ("smoke" if smoke else "", words) if word)
    spec = f"experiments/diffusion/{experiment}.py" + (f":{words}" if words else "")
    steps = int(BUDGET / cost)
    budget = () if smoke else (f"steps={steps}", f"eval_every={steps}", f"save_every={steps}")
    average = () if experiment == "progressive" else (EMA,)
    return Row(name, spec, (*budget, *average))

  start = "pretrained.start=distill_jax/assets/mixture25_denoiser"
  still = ("steps=0",) if smoke else ("steps=0", start)
  of_smoke = ":smoke" if smoke else ""
  return Table(
    title="25 modes from an exact teacher: one network, one budget of evaluations",
    rows=(
      Row(
        "start, 18 Heun steps",
        f"experiments/diffusion/denoising.py{of_smoke}",
        still,
        reference=True,
      ),
      *(row(name, *given) for name, given in ROWS.items()),
    ),
    columns=(
      Column(QUALITY, "energy distance", ".4f", "lower"),
      Column("samples/sliced_w2", "sliced W2", ".3f", "lower"),
      Column("samples/modes", "modes of 25", ".1f", "higher"),
      Column("samples/mode_kl", "KL of modes", ".3f", "lower"),
      Column("samples/precision", "within 3 sd", ".1%", "higher"),
      Column("samples/nll_gap", "nll gap", ".2f"),
      Column("train/seconds", "seconds", ",.0f"),
    ),
    at_once=True,
    samples=2000,
    claims=(
      Claim(
        "Improved techniques train a better consistency model than the first ones",
        "Song and Dhariwal, arXiv:2310.14189",
        row="iCT",
        than="CT",
        metric=QUALITY,
      ),
      Claim(
        "Distilling a teacher beats training alone, continuous-time consistency",
        "Lu and Song, arXiv:2410.11081",
        row="sCD",
        than="sCT",
        metric=QUALITY,
      ),
      Claim(
        "A discriminator makes SiD better at equal budget",
        "Zhou et al., arXiv:2410.14919",
        row="SiDA",
        than="SiD",
        metric=QUALITY,
      ),
      Claim(
        "Four steps are better than one",
        "Yin et al., arXiv:2405.14867",
        row="DMD2, 4 steps",
        than="DMD2",
        metric=QUALITY,
      ),
    ),
  )
