"""Preference distillation: from pairs of a chosen and a rejected answer, and a teacher.

  a pair's loss = D + sft (- mean over tokens of log q(chosen))

`method.loss` names D:

  dpo    -log sigmoid(beta (r(chosen) - r(rejected))) with r = log q(answer) - log p(answer), summed
         over tokens, or their mean with `average`: between teacher and student a sum is mostly the
         difference in length. On the same r: hinge, ipo (made for means), exo, nca, sppo, apo_zero,
         apo_down and discopop of losses/preference.py.
  dckd   alpha [KL(p || q) on chosen + KL(p || q) on rejected], means over the tokens of an answer,
         of a teacher that was aligned before; its authors add sft = 1. Any divergence may stand in.
  redi   - mean log q(chosen) + rejected_weight mean log q(rejected), from step `sft_steps` on;
         before it the chosen answer alone, the paper's first stage. It reads no teacher.

`method.reference` says whose p it is: the teacher's, a frozen copy of the student as it began
(plain preference optimisation), or none, r = log q. Answers without tokens count 0.

Paper: Rafailov et al., Direct Preference Optimization: Your Language Model is Secretly a Reward
  Model (arXiv:2305.18290), eq. 7.
Paper: Li et al., Direct Preference Knowledge Distillation for Large Language Models
  (arXiv:2406.19774), the teacher as reference, here on given pairs.
Paper: Gao, Wan, Guo, Quan, Wang, Advantage-Guided Distillation for Preference Alignment in Small
  Language Models (arXiv:2502.17927), DCKD.
Paper: Xu et al., Harnessing Negative Signals: Reinforcement Distillation from Teacher Data for LLM
  Reasoning (arXiv:2505.24850), eq. 6.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.config import ConfigError, did_you_mean
from distill_jax.losses import divergences, preference, sequences
from distill_jax.losses.linear_divergence import linear_cross_entropy, linear_divergence
from distill_jax.method import Method
from distill_jax.models import student as student_lib

CONTRASTS: dict[str, Callable] = {
  f.__name__: f
  for f in (
    preference.dpo,
    preference.hinge,
    preference.ipo,
    preference.exo,
    preference.nca,
    preference.sppo,
    preference.apo_zero,
    preference.apo_down,
    preference.discopop,
  )
}


def make(config) -> Method:
  settings = config.method
  for key, known in (
    ("loss", (*CONTRASTS, "dckd", "redi")),
    ("reference", ("teacher", "student", "none")),
  ):
    if settings[key] not in known:
      raise ConfigError(f"No method.{key} {settings[key]!r}." + did_you_mean(settings[key], known))
  student, teacher = student_lib.model(config, "student"), student_lib.model(config, "teacher")
  tx = optim.make(config.optim, config.steps)
  divergence = divergences.named(**config.divergence.kind)
  taught = settings.loss == "dckd" or (
    settings.reference == "teacher" and settings.loss in CONTRASTS
  )
  begin = student_lib.init(config, tx, teacher=taught)

  def init(key, pretrained):
    state, frozen = begin(key, pretrained)
    if settings.loss in CONTRASTS and settings.reference == "student":
      frozen = dict(frozen, reference=jax.tree.map(jnp.copy, state["student"]))
    return state, frozen

  def reference(frozen, batch):
    """log p of each token of the answers."""
    if settings.reference == "none":
      return 0.0
    if settings.reference == "student":
      return _log_probs(config, student, frozen["reference"], batch)
    return _log_probs(config, teacher, frozen["teacher"], batch)

  def of_pairs(params, frozen, batch, step):
    """The loss D of each pair, how much more likely chosen is than rejected, and the mean
    log-probability of chosen: [B] each."""
    where = batch["mask"]
    log_q = _log_probs(config, student, params, batch)
    chosen, rejected = _sides(sequences.sequence_mean(log_q, where))
    if settings.loss == "dckd":
      models, trees = (student, teacher), (params, frozen["teacher"])
      values = _divergences(config, divergence, models, trees, batch)
      loss = settings.alpha * jnp.sum(sequences.sequence_mean(values, where), axis=1)
    elif settings.loss == "redi":
      weight = jnp.where(step < settings.sft_steps, 0.0, settings.rejected_weight)
      loss = preference.redi(chosen, rejected, rejected_weight=weight)
    else:
      reduce = sequences.sequence_mean if settings.average else sequences.sequence_sum
      ratios = _sides(reduce(log_q - reference(frozen, batch), where))
      return CONTRASTS[settings.loss](*ratios, beta=settings.beta), ratios[0] - ratios[1], chosen
    return loss, chosen - rejected, chosen

  def step(state, frozen, batch, key):
    def loss(params, batch, key):
      values, margin, chosen = of_pairs(params, frozen, batch, state["step"])
      values = values - settings.sft * chosen
      pairs = jnp.float32(len(values))
      metrics = dict(
        margin=(jnp.sum(margin), pairs),
        accuracy=(jnp.sum(margin > 0, dtype=jnp.float32), pairs),
        chosen_log_prob=(jnp.sum(chosen), pairs),
      )
      return (jnp.sum(values), pairs), metrics

    return student_lib.update(config, tx, loss, state, batch, key)

  return Method(init, step)


def _log_probs(config, model, params, batch):
  """log q of each target: [B, 2, T], 0 where the mask does not count it."""
  flat = _flat(batch)
  nats = linear_cross_entropy(
    student_lib.hidden(model, params, flat),
    model.head(params),
    flat["tokens"][:, 1:],
    where=flat["mask"],
    chunk=config.divergence.chunk,
    student=student_lib.head(model),
  )
  return -nats.reshape(batch["mask"].shape)


def _divergences(config, divergence, models, params, batch):
  """The divergence between two models at each target: [B, 2, T]."""
  flat = _flat(batch)
  (student, teacher), (own, theirs) = models, params
  values = linear_divergence(
    divergence,
    student_lib.hidden(student, own, flat),
    student.head(own),
    jax.lax.stop_gradient(student_lib.hidden(teacher, theirs, flat)),
    teacher.head(theirs),
    where=flat["mask"],
    chunk=config.divergence.chunk,
    student=student_lib.head(student),
    teacher=student_lib.head(teacher),
  )
  return values.reshape(batch["mask"].shape)


def _flat(batch):
  """Both answers of each pair as rows of a batch of twice the size."""
  return {k: x.reshape(-1, x.shape[-1]) for k, x in batch.items()}


def _sides(x):
  return x[:, 0], x[:, 1]
