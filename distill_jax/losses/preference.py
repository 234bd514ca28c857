"""Losses on pairs of answers: a chosen and a rejected one.

`chosen` and `rejected` are [...] log-ratios log pi(answer) - log pi_ref(answer), summed or averaged
over tokens (`sequences.py`), or plain log-probabilities for the reference-free losses. With the
teacher as reference they distil preferences. Each function returns one loss per pair.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid

from distill_jax.losses.log_probs import token_log_probs


def dpo(
  chosen: jax.Array,
  rejected: jax.Array,
  *,
  beta: float = 0.1,
  margin: float = 0.0,
  label_smoothing: float = 0.0,
) -> jax.Array:
  """-(1 - e) log sigmoid(h) - e log sigmoid(-h), h = beta (chosen - rejected) - margin.

  Rafailov et al., Direct Preference Optimization (arXiv:2305.18290), eq. 7; e > 0 is its
  conservative form. On mean log-probabilities with a margin it is SimPO (arXiv:2405.14734), without
  a margin on summed ones CPO's preference term (arXiv:2401.08417), on mean log-ratios with the
  teacher as reference DistiLLM-2's DPKD.
  """
  h = beta * (chosen - rejected) - margin
  return -(1 - label_smoothing) * log_sigmoid(h) - label_smoothing * log_sigmoid(-h)


def robust_dpo(
  chosen: jax.Array, rejected: jax.Array, *, beta: float = 0.1, flip: float = 0.1
) -> jax.Array:
  """Unbiased DPO under a share `flip` of swapped pairs (Chowdhury et al., arXiv:2403.00409)."""
  h = beta * (chosen - rejected)
  return (-(1 - flip) * log_sigmoid(h) + flip * log_sigmoid(-h)) / (1 - 2 * flip)


def hinge(
  chosen: jax.Array, rejected: jax.Array, *, beta: float = 0.1, margin: float = 0.0
) -> jax.Array:
  """max(0, 1 - beta (chosen - rejected) + margin): SLiC (Zhao et al., arXiv:2305.10425)."""
  return jax.nn.relu(1 - beta * (chosen - rejected) + margin)


def ipo(chosen: jax.Array, rejected: jax.Array, *, beta: float = 0.1) -> jax.Array:
  """(chosen - rejected - 1/(2 beta))^2 on mean log-ratios (Azar et al., arXiv:2310.12036)."""
  return jnp.square(chosen - rejected - 1 / (2 * beta))


def exo(
  chosen: jax.Array, rejected: jax.Array, *, beta: float = 0.1, label_smoothing: float = 1e-3
) -> jax.Array:
  """KL of sigmoid(h) to the smoothed label, h = beta (chosen - rejected): EXO for pairs.

  Ji et al., Towards Efficient Exact Optimization of Language Model Alignment (arXiv:2402.00856).
  """
  h, e = beta * (chosen - rejected), label_smoothing
  return sigmoid(h) * (log_sigmoid(h) - jnp.log1p(-e)) + sigmoid(-h) * (
    log_sigmoid(-h) - jnp.log(e)
  )


def nca(chosen: jax.Array, rejected: jax.Array, *, beta: float = 0.1) -> jax.Array:
  """-log s(c) - [log s(-c) + log s(-r)] / 2, c and r times beta (Chen et al., arXiv:2402.05369)."""
  c, r = beta * chosen, beta * rejected
  return -log_sigmoid(c) - 0.5 * log_sigmoid(-c) - 0.5 * log_sigmoid(-r)


def sppo(chosen: jax.Array, rejected: jax.Array, *, beta: float = 0.1) -> jax.Array:
  """(chosen - 1/(2 beta))^2 + (rejected + 1/(2 beta))^2 (Wu et al., SPPO, arXiv:2405.00675)."""
  return jnp.square(chosen - 0.5 / beta) + jnp.square(rejected + 0.5 / beta)


def apo_zero(chosen: jax.Array, rejected: jax.Array, *, beta: float = 0.1) -> jax.Array:
  """1 - s(beta chosen) + s(beta rejected): chosen up, rejected down (APO, arXiv:2408.06266)."""
  return 1 - sigmoid(beta * chosen) + sigmoid(beta * rejected)


def apo_down(chosen: jax.Array, rejected: jax.Array, *, beta: float = 0.1) -> jax.Array:
  """s(beta chosen) + 1 - s(beta (chosen - rejected)): both down, rejected more (APO)."""
  return sigmoid(beta * chosen) + 1 - sigmoid(beta * (chosen - rejected))


def discopop(
  chosen: jax.Array, rejected: jax.Array, *, beta: float = 0.1, temperature: float = 0.05
) -> jax.Array:
  """(1 - m) (-log s(h)) + m exp(-h), m = s(h / temperature) (Lu et al., arXiv:2406.08414)."""
  h = beta * (chosen - rejected)
  mix = sigmoid(h / temperature)
  return -(1 - mix) * log_sigmoid(h) + mix * jnp.exp(-h)


def sorted_gap(policy: jax.Array, reference: jax.Array) -> jax.Array:
  """Differences of the two batches, each sorted by itself, [B]: what AOT puts into `dpo`.

  On gaps log pi(chosen) - log pi(rejected) of policy and reference for paired data; on chosen and
  rejected log-ratios for unpaired data. Melnyk et al., Distributional Preference Alignment of LLMs
  via Optimal Transport (arXiv:2406.05882).
  """
  return jnp.sort(policy) - jnp.sort(reference)


def alpha_score(log_ratio: jax.Array, *, alpha: float) -> jax.Array:
  """(exp((a - 1) x) - 1) / (a - 1), the score that replaces x in f-DPO with an alpha-divergence.

  a = 0 is forward KL, a -> 1 reverse KL, which is DPO. Wang et al., Beyond Reverse KL: Generalizing
  Direct Preference Optimization with Diverse Divergence Constraints (arXiv:2309.16240). The
  exponent is at most 80.
  """
  if alpha == 1:
    return log_ratio
  return jnp.expm1(jnp.minimum((alpha - 1) * log_ratio, 80.0)) / (alpha - 1)


def js_score(log_ratio: jax.Array) -> jax.Array:
  """log 2 + log sigmoid(x): the score of f-DPO with the Jensen-Shannon divergence."""
  return jnp.log(2.0) + log_sigmoid(log_ratio)


def alpha_reward(log_prob: jax.Array, *, alpha: float) -> jax.Array:
  """(1 - p^-a) / a with p = exp(log_prob), at a = 0 the log-probability (AlphaPO,
  arXiv:2501.03884).
  """
  return log_prob if alpha == 0 else -jnp.expm1(-alpha * log_prob) / alpha


def kto(
  log_ratio: jax.Array,
  desirable: jax.Array,
  divergence: jax.Array,
  *,
  beta: float = 0.1,
  desirable_weight: float = 1.0,
  undesirable_weight: float = 1.0,
) -> jax.Array:
  """w [1 - s(beta (x - z))] for desirable answers, w' [1 - s(beta (z - x))] for others.

  Ethayarajh et al., KTO: Model Alignment as Prospect Theoretic Optimization (arXiv:2402.01306).

  Args:
    log_ratio: x [B].
    desirable: bool[B].
    divergence: scalar estimate of KL(policy || reference), from mismatched pairs; z is its positive
      part without gradient.
  """
  z = jax.lax.stop_gradient(jnp.maximum(divergence, 0.0))
  good = desirable_weight * sigmoid(beta * (z - log_ratio))
  bad = undesirable_weight * sigmoid(beta * (log_ratio - z))
  return jnp.where(desirable, good, bad)


def apo_zero_unpaired(
  log_ratio: jax.Array, desirable: jax.Array, *, beta: float = 0.1
) -> jax.Array:
  """1 - s(beta x) for desirable answers, s(beta x) for others (APO, arXiv:2408.06266)."""
  return jnp.where(desirable, 1 - sigmoid(beta * log_ratio), sigmoid(beta * log_ratio))


def bco(
  log_ratio: jax.Array,
  desirable: jax.Array,
  *,
  beta: float = 0.1,
  baseline: float | jax.Array = 0.0,
) -> jax.Array:
  """-log s(beta x - d) for desirable answers, -log s(d - beta x) for others, d the baseline.

  Jung et al., Binary Classifier Optimization (arXiv:2404.04656), d the running mean of beta x.
  """
  h = beta * log_ratio - baseline
  return -log_sigmoid(jnp.where(desirable, h, -h))


class RunningMean(NamedTuple):
  """Mean of all values seen, float32 scalars: part of the training state."""

  mean: jax.Array
  seen: jax.Array


def update_mean(state: RunningMean, values: jax.Array) -> RunningMean:
  """Adds all of `values`; start from RunningMean(0, 0)."""
  values = jax.lax.stop_gradient(values)
  count = state.seen + values.size
  return RunningMean(state.mean + jnp.sum(values - state.mean) / count, count)


def log_odds_ratio(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
  """log odds(chosen) - log odds(rejected) of mean log-probabilities, which are below 0.

  ORPO's loss is the chosen answer's mean negative log-probability minus beta log s(this) (Hong,
  Lee, Thorne, arXiv:2403.07691), eq. 6 and 7.
  """

  def log_odds(x):
    return x - jnp.log(-jnp.expm1(x))

  return log_odds(chosen) - log_odds(rejected)


def redi(
  chosen: jax.Array,
  rejected: jax.Array,
  *,
  chosen_weight: float | jax.Array = 1.0,
  rejected_weight: float | jax.Array = 0.8,
  gamma: float | None = None,
) -> jax.Array:
  """-w chosen + w' rejected on mean log-probabilities: learning from negative reasoning traces.

  Xu et al., Harnessing Negative Signals: Reinforcement Distillation from Teacher Data for LLM
  Reasoning (REDI, arXiv:2505.24850), eq. 6.

  Args:
    gamma: multiplies the rejected term by exp(gamma rejected), through which gradients flow; None
      for no such weight, as in the paper.
  """
  push = rejected_weight * rejected
  return -chosen_weight * chosen + (push if gamma is None else push * jnp.exp(gamma * rejected))


def teacher_student_pair(
  student_logits: jax.Array, teacher_logits: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Per token, the teacher's likeliest id as chosen and the student's as rejected.

  Li et al., Direct Preference Knowledge Distillation for Large Language Models (DPKD,
  arXiv:2406.19774); the paper writes it on sequences, the authors' code on tokens, which is this.

  Args:
    student_logits, teacher_logits: [..., V].

  Returns:
    Log-probabilities [...] of the student for chosen and rejected, and of the teacher for both.
  """
  teacher_logits = jax.lax.stop_gradient(teacher_logits)
  chosen, rejected = jnp.argmax(teacher_logits, axis=-1), jnp.argmax(student_logits, axis=-1)
  return (
    token_log_probs(student_logits, chosen),
    token_log_probs(student_logits, rejected),
    token_log_probs(teacher_logits, chosen),
    token_log_probs(teacher_logits, rejected),
  )


def dpo_positive(
  policy_chosen: jax.Array, reference_chosen: jax.Array, *, weight: float = 50.0
) -> jax.Array:
  """weight max(0, log ref(chosen) - log pi(chosen)), added to `dpo`: chosen may not lose mass.

  Pal et al., Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive
  (arXiv:2402.13228); inside DPO's logit there, added outside of it in DPKD's code.
  """
  return weight * jax.nn.relu(reference_chosen - policy_chosen)


def adaptive_skew(
  student: jax.Array, teacher: jax.Array, *, gap: float | jax.Array, base: float = 0.1
) -> jax.Array:
  """1 - (1 - base) gap / (P - Q), clipped to [0.01, base]: DistiLLM-2's skew for each answer.

  P and Q are exp(mean log-probability) of the answer under teacher and student; answers on which
  they differ by less than `gap`, the batch average before, get the smaller skew. Exchange the two
  for answers of the student. Gradients flow through it as in the authors' code.

  Ko et al., DistiLLM-2: A Contrastive Approach Boosts the Distillation of LLMs (arXiv:2503.07067).
  Its loss is (2 - b) skew_forward_kl on the teacher's answers plus b skew_reverse_kl on the
  student's, averaged over the tokens of each answer, b = 1 or rising to 1.5.

  Args:
    student, teacher: mean log-probabilities of the answers, [...].
  """
  return jnp.clip(1 - (1 - base) * gap / (jnp.exp(teacher) - jnp.exp(student) + 1e-5), 0.01, base)
