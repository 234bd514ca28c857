"""DistiLLM-2: one divergence on what the teacher writes, another on what the student writes.

  y_T ~ teacher(. | prompt),  y_S ~ student(. | prompt)
  loss = (2 - b) mean_t KL(p || a p + (1 - a) q)(y_T) + b mean_t KL(q || (1 - a) p + a q)(y_S)

b rises from 1 to 1.5 in the first half of the run. Each answer has a skew a of its own, at most
`skew` of the divergence: smaller where the two models differ less on it than the batch before did
on average (`losses.preference.adaptive_skew`). Both write inside the compiled step, at every step;
the authors write once an epoch. Their released code turns both schedules off.

Paper: Ko et al., DistiLLM-2: A Contrastive Approach Boosts the Distillation of LLMs
  (arXiv:2503.07067), eq. 5 and sections 3.2, 3.3.
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.losses.divergences import skew_forward_kl, skew_reverse_kl
from distill_jax.losses.linear_divergence import linear_cross_entropy
from distill_jax.losses.preference import adaptive_skew
from distill_jax.losses.sequences import sequence_mean
from distill_jax.method import Method
from distill_jax.models import student as student_lib


def make(config) -> Method:
  student, teacher = student_lib.model(config, "student"), student_lib.model(config, "teacher")
  tx = optim.make(config.optim, config.steps)
  base = config.divergence.kind.skew
  init_student = student_lib.init(config, tx)

  def init(key, pretrained):
    state, frozen = init_student(key, pretrained)
    return dict(
      state, gaps=jnp.full(2, jnp.nan, jnp.float32)
    ), frozen  # of teacher's and student's answers

  def likelihood(model, params, batch):
    """Mean log-probability of each answer, [B]."""
    nats = linear_cross_entropy(
      student_lib.hidden(model, params, batch),
      model.head(params),
      batch["tokens"][:, 1:],
      where=batch["mask"],
      chunk=config.divergence.chunk,
      student=student_lib.head(model),
    )
    return sequence_mean(-nats, batch["mask"])

  def prepared(state, frozen, batch, gap, sign):
    """The batch with each token's skew and weight, and the gap of this batch."""
    logs = (
      likelihood(student, state["student"], batch),
      likelihood(teacher, frozen["teacher"], batch),
    )
    if sign < 0:  # an answer of the student: it and the teacher change places
      logs = logs[::-1]
    adapted = adaptive_skew(*logs, gap=gap, base=base)
    skew = jnp.where(jnp.isnan(gap), base, adapted)
    mask = batch["mask"]
    length = jnp.maximum(jnp.sum(mask, axis=1), 1)[:, None]
    extra = dict(skew=jnp.broadcast_to(skew[:, None], mask.shape), weight=mask / length)
    return dict(batch, **extra), jnp.mean(jnp.exp(logs[1]) - jnp.exp(logs[0]))

  def step(state, frozen, batch, key):
    teacher_key, student_key, loss_key = jax.random.split(key, 3)
    b = 1 + 0.5 * jnp.minimum(1, 2 * state["step"] / config.steps)
    theirs = student_lib.write(config, teacher, frozen["teacher"], batch, teacher_key)
    own = student_lib.write(config, student, state["student"], batch, student_key)
    theirs, gap = prepared(state, frozen, theirs, state["gaps"][0], 1)
    own, own_gap = prepared(state, frozen, own, state["gaps"][1], -1)

    def loss(params, batch, key):
      def part(divergence, batch, weight):
        total, _ = student_lib.divergence_sum(
          config,
          lambda q, p, skew: divergence(q, p, skew=skew),
          (student, params),
          (teacher, frozen["teacher"]),
          batch,
          batch["skew"],
          weights=weight * batch["weight"],
        )
        return total

      total = part(skew_forward_kl, batch["theirs"], 2 - b) + part(skew_reverse_kl, batch["own"], b)
      return (total, jnp.float32(len(batch["own"]["tokens"]))), {}

    state, metrics = student_lib.update(
      config, tx, loss, state, dict(theirs=theirs, own=own), loss_key
    )
    return dict(state, gaps=jnp.stack([gap, own_gap])), metrics

  return Method(init, step)
