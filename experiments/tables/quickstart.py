"""The quickstart: one teacher, students five times smaller from one warm start, equal student
tokens.

Run:   make run [SEEDS=3]
Takes: under six minutes on two CPU cores with one seed, installation included. The figures of a
  recorded run are in
       docs/ledger.md.
"""

from distill_jax.config import parse_arg
from distill_jax.tables import Claim, Column, Row, Table

BITS, TOP1 = "language/bits_per_byte", "language/top1"
KL, REVERSE, OWN = "language/teacher_kl", "language/reverse_kl", "own_text/reverse_kl"


def get_table(arg=None):
  """`smoke` makes it a matter of seconds, on random models."""
  smoke = ":smoke" if parse_arg(arg, smoke=False).smoke else ""

  def row(name, experiment, argument="", **kwargs):
    words = ",".join(w for w in (smoke[1:], argument) if w)
    spec = f"experiments/llm/{experiment}.py" + (f":{words}" if words else "")
    return Row(name, spec, **kwargs)

  teacher = "pretrained.student=distill_jax/assets/stdlib_teacher"
  still = ("steps=0",)
  return Table(
    title="2.2M parameters (T) distilled into 0.4M (S) on the Python standard library's source",
    rows=(
      row("teacher", "sft", reference=True, overrides=still if smoke else (teacher, *still)),
      row("warm start", "sft", reference=True, overrides=still),
      row("cross-entropy", "sft"),
      row("forward KL", "kd"),
      row("reverse KL", "kd", "divergence=reverse_kl"),
      row("on-policy GKD", "gkd"),
    ),
    columns=(
      Column(BITS, "bits per byte", ".4f", "lower"),
      Column(KL, "KL(T ‖ S)", ".4f", "lower"),
      Column(REVERSE, "KL(S ‖ T)", ".4f", "lower"),
      Column(OWN, "KL(S ‖ T), own text", ".4f", "lower"),
      Column(TOP1, "top-1 agreement", ".2%", "higher"),
      Column("train/tokens_per_s", "tokens/s", ",.0f"),
      Column("train/seconds", "seconds", ",.0f"),
    ),
    curves=(BITS, KL, OWN),
    claims=(
      Claim(
        "Soft targets teach a small model more than the data alone: lower KL to the teacher",
        "Hinton et al., arXiv:1503.02531",
        row="forward KL",
        than="cross-entropy",
        metric=KL,
      ),
      Claim(
        "and a lower loss on held-out data at equal student tokens",
        "Hinton et al., arXiv:1503.02531, section 3",
        row="forward KL",
        than="cross-entropy",
        metric=BITS,
      ),
      Claim(
        "Reverse KL, the objective itself, falls below that of training on the data",
        "Gu et al., arXiv:2306.08543",
        row="reverse KL",
        than="cross-entropy",
        metric=REVERSE,
      ),
      Claim(
        "On text of its own, a student trained on-policy is closer to its teacher than one "
        "trained on the data",
        "Agarwal et al., arXiv:2306.13649",
        row="on-policy GKD",
        than="cross-entropy",
        metric=OWN,
      ),
      Claim(
        "and closer than one that had the teacher's distributions on given text",
        "Agarwal et al., arXiv:2306.13649",
        row="on-policy GKD",
        than="forward KL",
        metric=OWN,
      ),
    ),
  )
