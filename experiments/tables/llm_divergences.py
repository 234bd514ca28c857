"""Divergences and methods for language models at one budget, one learning rate, one warm start.

Run:   python -m distill_jax.tables experiments/tables/llm_divergences.py --workdir
         runs/llm_divergences --seeds 3
       `:all` adds rows that take longer. `:gemma` asks for Gemma 3 270M and a pruned copy of it
       instead (`make gemma` first), and leaves out what generates text. `:smoke` is a matter of
       minutes, on random models.
Takes: 20 to 40 s a row and seed, 32 minutes for `:all` with three seeds, on two CPU cores; `:gemma`
  100 s a row and seed, an hour in all, 9 GB of memory, and 3 GB of disk for each of the 35 runs'
  checkpoints, which may go once a run is done. The figures are in docs/ledger.md.
"""

from distill_jax.config import ConfigError, parse_arg
from distill_jax.tables import Claim, Column, Row, Table
from experiments.llm.gemma3_270m import CACHE, GEMMA

BITS, KL, REVERSE = "language/bits_per_byte", "language/teacher_kl", "language/reverse_kl"
OWN = "own_text/reverse_kl"
TEACHER = "pretrained.student=distill_jax/assets/stdlib_teacher"
BUDGET = (
  "batch_size=8",
  "steps=100",
  "eval_every=100",
  "save_every=100",
  "eval_batches=8",
  "models.student.remat=dots",
)
GEMMA_BUDGET = (
  "batch_size=4",
  "steps=8",
  "eval_every=8",
  "save_every=8",
  "eval_batches=3",
  "optim.warmup=2",
  "divergence.chunk=512",  # a whole batch
)
GEMMA_MODELS = (
  f"pretrained.teacher={GEMMA}",
  f"pretrained.student={CACHE}/gemma3-270m-14-layers",
  f"data.tokenizer={GEMMA}",
  "data.seq_len=128",
  "optim.lr=2e-4",
  'evals=("language",)',
)


def get_table(arg=None):
  words = parse_arg(arg, smoke=False, gemma=False, all=False)
  if words.gemma and words.all:
    raise ConfigError("`all` adds rows to the small pair's table; `gemma` has no such rows.")
  return _gemma(words.smoke) if words.gemma else _stdlib(words.smoke, words.all)


def _row(name, experiment, word="", *overrides, smoke, budget=BUDGET, **kwargs):
  words = ",".join(w for w in ("smoke" if smoke else "", word) if w)
  path = f"experiments/llm/{experiment}.py" + (f":{words}" if words else "")
  return Row(name, path, overrides if smoke else (*budget, *overrides), **kwargs)


def _divergences(experiment, smoke, budget):
  """Rows of `llm.kd` that differ by the divergence alone."""

  def row(name, divergence, *overrides):
    word = f"divergence={divergence}"
    return _row(name, experiment, word, *overrides, smoke=smoke, budget=budget)

  return (
    row("forward KL", "forward_kl"),
    row("reverse KL", "reverse_kl"),
    row("Jensen-Shannon", "generalized_js"),
    row("skewed forward KL", "skew_forward_kl"),
    row("skewed reverse KL", "skew_reverse_kl"),
    row("total variation", "total_variation"),
    row("alpha-beta", "alpha_beta", "divergence.kind.alpha=0.2", "divergence.kind.beta=0.7"),
  )


def _stdlib(smoke, every):
  def row(name, experiment, word="", *overrides, **kwargs):
    return _row(name, experiment, word, *overrides, smoke=smoke, **kwargs)

  own = 'evals=("language", "own_text")'
  still = ("steps=0",)
  return Table(
    title="2.2M parameters (T) distilled into 0.4M (S), 205k tokens of the standard library",
    rows=(
      row("teacher", "sft", "", *(still if smoke else (TEACHER, *still)), reference=True),
      row("warm start", "sft", "", *still, reference=True),
      row("cross-entropy", "sft"),
      *_divergences("kd", smoke, BUDGET),
      row("TAID", "taid"),
      row("on-policy GKD", "gkd"),
      row("DistiLLM", "distillm"),
      *(
        (
          row("adaptive KL", "kd", "divergence=adaptive_kl"),
          row("sequence-level KD", "seqkd"),
          row("hidden states and relations", "kd_hidden"),
          row("cached top 64 and tail", "cached_kd", "loss=tail", own),
          row("DistiLLM-2", "distillm2"),
        )
        if every
        else ()
      ),
    ),
    columns=(
      Column(BITS, "bits per byte", ".4f", "lower"),
      Column(KL, "KL(T ‖ S)", ".4f", "lower"),
      Column(REVERSE, "KL(S ‖ T)", ".4f", "lower"),
      Column(OWN, "KL(S ‖ T), own text", ".4f", "lower"),
      Column("language/top1", "top-1 agreement", ".2%", "higher"),
      Column("train/tokens_per_s", "tokens/s", ",.0f"),
      Column("train/seconds", "seconds", ",.0f"),
    ),
    claims=(*_CLAIMS, *_MORE_CLAIMS) if every else _CLAIMS,
  )


def _gemma(smoke):
  def row(name, experiment, word="", *overrides, budget=GEMMA_BUDGET, **kwargs):
    return _row(name, experiment, word, *overrides, smoke=smoke, budget=budget, **kwargs)

  other = (*GEMMA_BUDGET, *GEMMA_MODELS)  # for the rows of other experiments
  itself = (*other, f"pretrained.student={GEMMA}")
  return Table(
    title="Gemma 3 270M (T) distilled into 14 of its 18 layers (S), 4k tokens",
    rows=(
      row("teacher", "sft", "", "steps=0", budget=itself, reference=True),
      row("pruned", "gemma3_270m", "", "steps=0", reference=True),
      row("cross-entropy", "sft", budget=other),
      *_divergences("gemma3_270m", smoke, GEMMA_BUDGET),
      row("adaptive KL", "gemma3_270m", "divergence=adaptive_kl"),
      row("forward KL and cross-entropy", "gemma3_270m", "", "method.alpha=0.5"),
      row("TAID", "taid", budget=other),
    ),
    columns=(
      Column(BITS, "bits per byte", ".4f", "lower"),
      Column(KL, "KL(T ‖ S)", ".4f", "lower"),
      Column(REVERSE, "KL(S ‖ T)", ".4f", "lower"),
      Column("language/top1", "top-1 agreement", ".2%", "higher"),
      Column("train/tokens_per_s", "tokens/s", ",.0f"),
      Column("train/seconds", "seconds", ",.0f"),
    ),
    claims=(*(c for c in _CLAIMS if c.metric != OWN), _MIXED_CLAIM),
  )


_CLAIMS = (
  Claim(
    "Soft targets teach more than the data alone at equal student tokens",
    "Hinton et al., arXiv:1503.02531",
    row="forward KL",
    than="cross-entropy",
    metric=BITS,
  ),
  Claim(
    "Reverse KL does not spread over what the teacher rules out: closer on text of its own",
    "Gu et al., arXiv:2306.08543",
    row="reverse KL",
    than="forward KL",
    metric=OWN,
  ),
  Claim(
    "Skewed reverse KL optimises more stably than reverse KL: lower reverse KL in the end",
    "Ko et al., arXiv:2402.03898",
    row="skewed reverse KL",
    than="reverse KL",
    metric=REVERSE,
  ),
  Claim(
    "Skewed forward KL is better than forward KL",
    "Ko et al., arXiv:2402.03898",
    row="skewed forward KL",
    than="forward KL",
    metric=OWN,
  ),
  Claim(
    "Symmetric divergences beat forward KL: Jensen-Shannon",
    "Wen et al., arXiv:2307.15190",
    row="Jensen-Shannon",
    than="forward KL",
    metric=OWN,
  ),
  Claim(
    "and total variation",
    "Wen et al., arXiv:2307.15190",
    row="total variation",
    than="forward KL",
    metric=OWN,
  ),
  Claim(
    "alpha = 0.2, beta = 0.7 beats forward KL",
    "Wang et al., arXiv:2505.04560",
    row="alpha-beta",
    than="forward KL",
    metric=OWN,
  ),
  Claim(
    "A target that moves towards the teacher beats the teacher as target",
    "Shing et al., arXiv:2501.16937",
    row="TAID",
    than="forward KL",
    metric=BITS,
  ),
  Claim(
    "On text of its own, on-policy training beats training on given text",
    "Agarwal et al., arXiv:2306.13649",
    row="on-policy GKD",
    than="Jensen-Shannon",
    metric=OWN,
  ),
  Claim(
    "Adaptive off-policy training with replay is no worse than on-policy GKD, and cheaper",
    "Ko et al., arXiv:2402.03898",
    row="DistiLLM",
    than="on-policy GKD",
    metric=OWN,
  ),
)
_MORE_CLAIMS = (
  Claim(
    "Hidden states and relations add to the outputs' divergence",
    "Jiao et al., arXiv:1909.10351",
    row="hidden states and relations",
    than="forward KL",
    metric=KL,
  ),
  Claim(
    "Adaptive KL, led by where the two differ, beats forward KL",
    "Wu et al., arXiv:2404.02657",
    row="adaptive KL",
    than="forward KL",
    metric=OWN,
  ),
  Claim(
    "A loss for the teacher's text and one for the student's beat one for both",
    "Ko et al., arXiv:2503.07067",
    row="DistiLLM-2",
    than="DistiLLM",
    metric=OWN,
  ),
)
_MIXED_CLAIM = Claim(
  "The right labels beside the soft targets improve on soft targets alone",
  "Hinton et al., arXiv:1503.02531",
  row="forward KL and cross-entropy",
  than="forward KL",
  metric=BITS,
)
