"""Distillation between tokenizers: student and teacher read the same text in tokens of their own.

  loss = [sft sum_t CE(y_t, q_t) + weight sum_c D_c] / number of the student's target tokens

The chunks c are the shortest pieces of text that both tokenizers spell in whole tokens
(data/two_tokenizers.py). `method.loss` says what D_c compares:

  alm          f(log q(c), log p(c)), the likelihoods that both give to the text of the chunk, each
               times that of a new word after it (`boundary`). Chunks after which the teacher gives
               a new word less than `threshold` are joined with the next. f is a function of
               losses/alm.py at temperature `tau`; with the weight tau its gradient does not shrink
               as tau grows. The last chunk of a row, whose end nothing follows, is left out.
  uld          sum_i |q_(i) - p_(i)|, both distributions over the first token of the chunk sorted.
  hybrid_uld   generalised JS on the tokens that both write alike, uld on the others.

The paper of ULD pairs the positions of two answers by their number and cuts the longer one; here
paired positions have read the same text. The hybrid is that of GOLD in TRL, which multiplies
probabilities within a chunk, where here its first token is compared.

Paper: Minixhofer, Vulic, Ponti, Universal Cross-Tokenizer Distillation via Approximate Likelihood
  Matching (arXiv:2503.20083), section 3.
Paper: Boizard, El Haddad, Hudelot, Colombo, Towards Cross-Tokenizer Distillation: the Universal
  Logit Distillation Loss for LLMs (arXiv:2402.12030), eq. 3.
"""

import inspect
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.config import ConfigError, did_you_mean
from distill_jax.data import two_tokenizers
from distill_jax.losses import alm
from distill_jax.losses.cross_tokenizer import hybrid_uld, uld
from distill_jax.losses.linear_divergence import (
  linear_cross_entropy,
  linear_divergence_sum,
  linear_loss,
)
from distill_jax.losses.log_probs import log_softmax
from distill_jax.method import Method
from distill_jax.models import student as student_lib

FUNCTIONS = (
  alm.binary_cross_entropy,
  alm.reverse_binary_kl,
  alm.binary_kl_limit,
  alm.renyi,
  alm.absolute,
  alm.absolute_log,
  alm.squared_log,
)


def make(config) -> Method:
  student, teacher = student_lib.model(config, "student"), student_lib.model(config, "teacher")
  tx = optim.make(config.optim, config.steps)
  settings = config.method
  losses = dict(alm=_alm, uld=_first_tokens, hybrid_uld=_first_tokens)
  if settings.loss not in losses:
    raise ConfigError(f"No method.loss {settings.loss!r}." + did_you_mean(settings.loss, losses))
  chunk_loss = losses[settings.loss](config, student, teacher)
  begin = student_lib.init(config, tx)

  def init(key, pretrained):
    state, frozen = begin(key, pretrained)
    names = config.data.tokenizer, config.data.teacher_tokenizer
    if settings.loss == "alm":
      tokens = [two_tokenizers.word_starts(name) for name in names]
    else:
      tokens = list(two_tokenizers.shared_ids(*names))
    return state, dict(frozen, tokens=[jnp.asarray(x) for x in tokens])

  def step(state, frozen, batch, key):
    def loss(params, batch, key):
      theirs = dict(tokens=batch["teacher_tokens"])
      read = student_lib.hidden(student, params, batch)
      taught = jax.lax.stop_gradient(student_lib.hidden(teacher, frozen["teacher"], theirs))
      heads = student.head(params), jax.lax.stop_gradient(teacher.head(frozen["teacher"]))
      nats = linear_cross_entropy(
        read,
        heads[0],
        batch["tokens"][:, 1:],
        where=batch["mask"],
        chunk=config.divergence.chunk,
        student=student_lib.head(student),
      )
      total, chunks = chunk_loss((read, taught), heads, nats, batch, frozen["tokens"])
      entropy, count = jnp.sum(nats), jnp.sum(batch["mask"], dtype=jnp.float32)
      metrics = dict(cross_entropy=(entropy, count), chunk_loss=(total, chunks))
      return (settings.sft * entropy + settings.weight * total, count), metrics

    return student_lib.update(config, tx, loss, state, batch, key)

  return Method(init, step)


def _alm(config, student, teacher):
  """(hidden, heads, student's nats, batch, word starts) -> sum over chunks, number of chunks."""
  functions = {f.__name__: f for f in FUNCTIONS}
  name, settings = config.method.function, config.method
  if name not in functions:
    raise ConfigError(f"No method.function {name!r}." + did_you_mean(name, functions))
  takes = inspect.signature(functions[name]).parameters
  scale = {"temperature": settings.tau} if "temperature" in takes else {}
  compare: Callable = partial(functions[name], **scale)
  count = min(config.data.seq_len, config.data.teacher_seq_len)

  def loss(hidden, heads, nats, batch, starts):
    of = dict(chunk=config.divergence.chunk)
    theirs = -linear_cross_entropy(
      hidden[1],
      heads[1],
      batch["teacher_tokens"][:, 1:],
      where=batch["teacher_mask"],
      student=student_lib.head(teacher),
      **of,
    )
    sides = [(-nats, batch["chunks"]), (theirs, batch["teacher_chunks"])]
    after: list[jax.Array | None] = [None, None]
    if settings.boundary:
      models = zip(hidden, heads, (student, teacher), starts, strict=True)
      after = [
        _shifted(linear_loss(_mass(begins), h, head, student=student_lib.head(model), **of))
        for h, head, model, begins in models
      ]
      ends = alm.numbered_chunk_log_likelihoods(
        jnp.zeros_like(theirs), sides[1][1], count=count, next_log_probs=after[1]
      )
      keep = ends >= jnp.log(settings.threshold) if settings.threshold > 0 else ends <= 0
      sides = [(x, alm.merge_chunks(chunks, keep)) for x, chunks in sides]
    likelihoods = [
      alm.numbered_chunk_log_likelihoods(x, chunks, count=count, next_log_probs=following)
      for (x, chunks), following in zip(sides, after, strict=True)
    ]
    chunks = sides[0][1]
    last = jnp.max(jnp.where(chunks < count, chunks, -1), axis=1, keepdims=True)
    where = jnp.arange(count) < last
    own, target = (jnp.where(where, x, -1.0) for x in likelihoods)
    values = jnp.where(where, compare(own, target), 0.0)
    return jnp.sum(values), jnp.sum(where, dtype=jnp.float32)

  return loss


def _mass(begins):
  """logits -> log of the probability of the tokens bool[V] that begin a word."""

  def log_mass(logits):
    width = logits.shape[-1] - len(begins)
    where = jnp.pad(begins, (0, width))
    return jax.nn.logsumexp(jnp.where(where, log_softmax(logits), -jnp.inf), axis=-1)

  return log_mass


def _shifted(x):
  """What is predicted after each target [B, T]; nothing after the last."""
  return jnp.pad(x[:, 1:], ((0, 0), (0, 1)))


def _first_tokens(config, student, teacher):
  """(hidden, heads, student's nats, batch, shared ids) -> sum over chunks, number of chunks."""
  count = min(config.data.seq_len, config.data.teacher_seq_len)
  hybrid = config.method.loss == "hybrid_uld"

  def first(chunks):
    order = jnp.arange(chunks.shape[1])
    return jax.vmap(lambda ids: jax.ops.segment_min(order, ids, count))(chunks)

  def loss(hidden, heads, nats, batch, shared):
    places = [first(batch["chunks"]), first(batch["teacher_chunks"])]
    where = (places[0] < hidden[0].shape[1]) & (places[1] < hidden[1].shape[1])
    at = [
      jnp.take_along_axis(h, jnp.where(where, place, 0)[..., None], axis=1)
      for h, place in zip(hidden, places, strict=True)
    ]

    def compare(student_logits, teacher_logits):
      if not hybrid:
        return uld(student_logits, teacher_logits)
      q = jnp.exp(log_softmax(_whole(student_logits)[..., : student.vocabulary]))
      p = jnp.exp(log_softmax(_whole(teacher_logits)[..., : teacher.vocabulary]))
      return hybrid_uld(q, p, *shared, beta=config.divergence.kind.beta)

    total, _ = linear_divergence_sum(
      compare,
      at[0],
      heads[0],
      at[1],
      heads[1],
      weights=where,
      chunk=config.divergence.chunk,
      student=student_lib.head(student),
      teacher=student_lib.head(teacher),
    )
    return total, jnp.sum(where, dtype=jnp.float32)

  return loss


def _whole(logits):
  """The same with the vocabulary on every device: ids are picked from it."""
  if not jax.sharding.get_abstract_mesh().axis_names:
    return logits
  rest = (jax.P.UNCONSTRAINED,) * (logits.ndim - 1)
  return jax.lax.with_sharding_constraint(logits, jax.P(*rest, None))
