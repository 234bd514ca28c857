"""Distillation from what a teacher said once: no teacher runs in the step.

  loss = alpha D + (1 - alpha) CE(y, q),   D by `method.loss`, on K ids of each token:

  tail          T^2 D_T(p, q) on K + 1 outcomes, the last one all other ids
  renormalised  T^2 D_T(p / P, q): the teacher has no mass outside its ids, the student does
  first         T^2 D_T(p / P, q / Q): both have none
  decoupled     KL(Bern(P) || Bern(Q)) + P KL_T(p / P || q / Q): temperature inside the ids alone
  sampled       -sum_k w_k log q(id_k) with ids drawn from p: the gradient of KL(p || q), on average
  hidden        T^2 D_T(p, q) on all ids, p from cached hidden states and the teacher's head

P and Q are the masses on the ids, D any divergence of losses/divergences.py. Of the cached ids the
likeliest `method.ids` are used.

Paper: Shum et al., FIRST: Teach A Reliable Large Language Model Through Efficient Trustworthy
  Distillation (arXiv:2408.12168), on the likeliest 5 ids.
Paper: Anshumann et al., Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs
  (arXiv:2503.16870), random sampling.
Paper: Liquid AI, LFM2 Technical Report (arXiv:2511.23404), decoupled top-k distillation.
"""

from collections.abc import Callable

import jax.numpy as jnp

from distill_jax import optim
from distill_jax.config import ConfigError
from distill_jax.losses import divergences
from distill_jax.losses.linear_divergence import linear_divergence_sum, linear_loss_sum
from distill_jax.losses.log_probs import token_log_probs
from distill_jax.losses.sparse import cached_divergence, decoupled_top_k, sampled_cross_entropy
from distill_jax.method import Method
from distill_jax.models import student as student_lib

REST = dict(tail="tail", renormalised="zero", first="drop")  # see losses.sparse.cached_divergence
KINDS = dict.fromkeys((*REST, "decoupled"), "top_k") | dict(sampled="sampled")  # of the cache


def make(config) -> Method:
  student, teacher = student_lib.model(config, "student"), student_lib.model(config, "teacher")
  tx = optim.make(config.optim, config.steps)
  soft, alpha, whole = soft_loss(config), config.method.alpha, config.method.loss == "hidden"

  def of_position(logits, *signals_and_target):
    *signals, target = signals_and_target
    value = soft(logits, *signals)
    return value if alpha == 1 else alpha * value - (1 - alpha) * token_log_probs(logits, target)

  def step(state, frozen, batch, key):
    def loss(params, batch, key):
      own = student_lib.hidden(student, params, batch), student.head(params)
      weights, targets = batch["mask"], batch["tokens"][:, 1:]
      chunk, form = config.divergence.chunk, student_lib.head(student)
      if whole:
        head = teacher.head(frozen["teacher"])
        seen = batch["teacher_hidden"].astype(head.dtype)
        total, _ = linear_divergence_sum(
          of_position,
          *(*own, seen, head, targets),
          weights=weights,
          chunk=chunk,
          student=form,
          teacher=student_lib.head(teacher),
        )
      else:
        field = "teacher_weights" if config.method.loss == "sampled" else "teacher_log_probs"
        extras = batch["teacher_ids"], batch[field], targets
        total, _ = linear_loss_sum(
          of_position, *own, *extras, weights=weights, chunk=chunk, student=form
        )
      return (total, jnp.sum(weights, dtype=jnp.float32)), {}

    return student_lib.update(config, tx, loss, state, batch, key)

  return Method(student_lib.init(config, tx, teacher=whole), step)


def soft_loss(config) -> Callable:
  """D: (student logits [..., V], what is cached of the teacher) -> [...]."""
  name, given, cache = config.method.loss, config.divergence.kind, config.data.cache
  temperature, count = given.temperature, config.method.ids or None
  if name == "hidden":
    if not cache.hidden:
      raise ConfigError("method.loss 'hidden' needs data.cache.hidden: float16 or bfloat16.")
    divergence = divergences.named(**given)
    return lambda logits, teacher_logits: temperature**2 * divergence(logits, teacher_logits)
  if name not in KINDS:
    raise ConfigError(f"method.loss {name!r} is not one of {', '.join(KINDS)}, hidden.")
  if cache.kind != KINDS[name]:
    raise ConfigError(f"method.loss {name!r} needs data.cache.kind={KINDS[name]}.")
  if name == "sampled":
    if temperature != 1 or count:
      raise ConfigError("method.loss 'sampled' is for divergence.kind.temperature 1 and all ids.")
    return sampled_cross_entropy
  if name == "decoupled":

    def decoupled(logits, ids, log_probs):
      ids, log_probs = ids[..., :count], log_probs[..., :count]
      mass, inside, within = decoupled_top_k(logits, ids, log_probs, temperature=temperature)
      return mass + inside * within

    return decoupled
  if name == "renormalised" and given.name == "reverse_kl":
    raise ConfigError(
      "divergence.kind.name reverse_kl is infinite with method.loss 'renormalised'."
    )
  divergence = divergences.named(**{**given, "temperature": 1.0})

  def sparse(logits, ids, log_probs):
    ids, log_probs = ids[..., :count], log_probs[..., :count]
    return temperature**2 * cached_divergence(
      divergence, logits, ids, log_probs, rest=REST[name], temperature=temperature
    )

  return sparse
