"""Where a student agrees with its teacher, and whether it is as sure as it is right.

  perplexity             exp of the mean negative log-likelihood of the held-out tokens
  ece                    expected calibration error: sum over 15 bins of equal width, of the
                         probability of the likeliest token, of the bin's share of the tokens times
                         |how often that token is the next one - its mean probability|
  confidence01, ... 15   the shares of these bins: a histogram
  overlap                |the 10 likeliest ids of both models| / 10, a mean over tokens
  top1_part1, ... 8      how often both rank the same token first, in each eighth of the positions
  teacher_kl_part1, ...  KL(teacher || student) at temperature 1, in nats, the same way

The last three are measured when the run has a teacher of the same tokenizer. What counted no token
is absent.

Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks (arXiv:1706.04599), eq. 3.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import method as method_lib
from distill_jax.losses import divergences
from distill_jax.losses.linear_divergence import linear_divergence, linear_loss
from distill_jax.losses.log_probs import log_softmax, token_log_probs
from distill_jax.mesh import put_batch
from distill_jax.models import student as student_lib

BINS, PARTS, TOP = 15, 8, 10


def make(config):
  """Reads the held-out batches once; `evaluate(state, frozen)` looks at state["student"]."""
  mesh, data = jax.sharding.get_mesh(), method_lib.load("data", config.data.name)
  batches = [put_batch(batch, mesh) for batch in data.validation(config)]
  student, teacher = (student_lib.model(config, name) for name in ("student", "teacher"))

  @jax.jit
  def sums(params, frozen, batch):
    """Sums over the tokens of a batch, and how many they are: each value is [..., 2]."""
    targets, mask = batch["tokens"][:, 1:], batch["mask"]
    hidden, head = student_lib.hidden(student, params, batch), student.head(params)
    how: dict[str, Any] = dict(where=mask, chunk=config.divergence.chunk)
    how["student"] = student_lib.head(student)
    compared = "teacher" in frozen and not config.data.teacher_tokenizer
    if compared:
      weights = frozen["teacher"]
      other = student_lib.hidden(teacher, weights, batch), teacher.head(weights)
      how["teacher"] = student_lib.head(teacher)
      values = linear_divergence(_both, hidden, head, *other, targets, **how)
    else:
      values = linear_loss(_own, hidden, head, targets, **how)

    def total(values, groups, count):
      member = (groups[..., None] == jnp.arange(count)) & mask[..., None]
      values = jnp.stack([values, jnp.ones_like(values)])
      return jnp.einsum("abt,btg->ga", values, member.astype(values.dtype))

    everything = jnp.zeros(mask.shape, jnp.int32)
    log_prob, sure, *rest = jnp.moveaxis(values, -1, 0)
    bins = jnp.clip(jnp.ceil(jnp.abs(sure) * BINS).astype(jnp.int32) - 1, 0, BINS - 1)
    found = dict(
      nats=total(-log_prob, everything, 1),
      confidence=total(jnp.abs(sure), bins, BINS),
      accuracy=total((sure > 0).astype(sure.dtype), bins, BINS),
    )
    if compared:
      parts = jnp.broadcast_to(jnp.arange(mask.shape[1]) * PARTS // mask.shape[1], mask.shape)
      found["overlap"] = total(rest[0], everything, 1)
      found["top1"] = total(rest[1], parts, PARTS)
      found["teacher_kl"] = total(rest[2], parts, PARTS)
    return found

  def evaluate(state, frozen):
    found = [sums(state["student"], frozen, batch) for batch in batches]
    found = jax.tree.map(lambda *x: np.sum(np.array(x, np.float64), axis=0), *jax.device_get(found))
    (nats, count), bins = found["nats"][0], found["confidence"]
    if not count:
      return {}
    gap = np.abs(found["accuracy"][:, 0] - bins[:, 0]).sum() / count
    results = dict(perplexity=np.exp(nats / count), ece=gap)
    results |= {f"confidence{i:02}": share for i, share in enumerate(bins[:, 1] / count, 1)}
    if "overlap" in found:
      results["overlap"] = found["overlap"][0, 0] / count
      for name in ("top1", "teacher_kl"):
        means = {f"{name}_part{i}": s / n for i, (s, n) in enumerate(found[name], 1) if n}
        results |= means
    return {name: float(value) for name, value in results.items()}

  return evaluate


def _own(logits, targets):
  """[..., 2]: the target's log-probability; the largest probability, negative at another id."""
  log_p = log_softmax(logits)
  sure = jnp.exp(jnp.max(log_p, axis=-1))
  signed = jnp.where(jnp.argmax(log_p, axis=-1) == targets, sure, -sure)
  return jnp.stack([token_log_probs(logits, targets), signed], axis=-1)


def _both(student_logits, teacher_logits, targets):
  """[..., 5]: those of `_own`, the share of the TOP ids in common, same first id, KL."""
  ours, theirs = (jax.lax.top_k(x, TOP)[1] for x in (student_logits, teacher_logits))
  values = (
    jnp.sum(ours[..., :, None] == theirs[..., None, :], axis=(-2, -1)) / TOP,
    jnp.argmax(student_logits, -1) == jnp.argmax(teacher_logits, -1),
    divergences.forward_kl(student_logits, teacher_logits),
  )
  compared = jnp.stack([value.astype(jnp.float32) for value in values], axis=-1)
  return jnp.concatenate([_own(student_logits, targets), compared], axis=-1)
