"""How well a student models held-out text, and how close it is to its teacher.

  bits_per_byte  negative log2-likelihood of the targets over the bytes of text they stand for:
                 comparable across tokenizers; an end of document is predicted, but is no byte
  loss           the same in nats, a mean over tokens
  teacher_kl     KL(teacher || student) at temperature 1, nats, a mean over tokens
  reverse_kl     KL(student || teacher), the same way
  top1           how often both models rank the same token first

The last three are measured when the run has a teacher of the same tokenizer.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import method as method_lib
from distill_jax.data import tokenizer
from distill_jax.losses import divergences
from distill_jax.losses.linear_divergence import linear_cross_entropy, linear_divergence
from distill_jax.losses.log_probs import token_log_probs
from distill_jax.mesh import put_batch
from distill_jax.metrics import Meter
from distill_jax.models import pretrained
from distill_jax.models import student as student_lib

COMPARISONS = "teacher_kl", "reverse_kl", "top1"


def make(config):
  """Reads the held-out batches once; `evaluate(state, frozen)` looks at state["student"]."""
  token_bytes = jnp.asarray(_padded(tokenizer.load(config.data.tokenizer).token_bytes, config))
  mesh = jax.sharding.get_mesh()
  data = method_lib.load("data", config.data.name)
  batches = [put_batch(batch, mesh) for batch in data.validation(config)]
  student = student_lib.model(config, "student")
  teacher = student_lib.model(config, "teacher")

  @jax.jit
  def sums(params, frozen, batch):
    targets, mask = batch["tokens"][:, 1:], batch["mask"]
    hidden, head = student_lib.hidden(student, params, batch), student.head(params)
    how: dict[str, Any] = dict(where=mask, chunk=config.divergence.chunk)
    how["student"] = student_lib.head(student)
    if "teacher" in frozen and not config.data.teacher_tokenizer:
      weights = frozen["teacher"]
      target = student_lib.hidden(teacher, weights, batch), teacher.head(weights)
      how["teacher"] = student_lib.head(teacher)
      values = linear_divergence(_comparisons, hidden, head, *target, targets, **how)
    else:
      values = linear_cross_entropy(hidden, head, targets, **how)[..., None]
    nats, *rest = jnp.sum(values, axis=(0, 1))
    count = jnp.sum(mask, dtype=jnp.float32)
    size = jnp.sum(jnp.where(mask, token_bytes[targets], 0), dtype=jnp.float32)
    metrics = dict(bits_per_byte=(nats / math.log(2), size), loss=(nats, count))
    return metrics | {name: (x, count) for name, x in zip(COMPARISONS, rest, strict=False)}

  def evaluate(state, frozen):
    meter = Meter()
    for metrics in [sums(state["student"], frozen, batch) for batch in batches]:
      meter.add(jax.device_get(metrics))
    return meter.means()

  return evaluate


def _comparisons(student_logits, teacher_logits, targets):
  """[..., 4]: the loss and what COMPARISONS names, of the same logits."""
  values = (
    -token_log_probs(student_logits, targets),
    divergences.forward_kl(student_logits, teacher_logits),
    divergences.reverse_kl(student_logits, teacher_logits),
    jnp.argmax(student_logits, -1) == jnp.argmax(teacher_logits, -1),
  )
  return jnp.stack([value.astype(jnp.float32) for value in values], axis=-1)


def _padded(token_bytes: np.ndarray, config) -> np.ndarray:
  """As long as the vocabulary, whose padding stands for no bytes."""
  size = max(pretrained.architecture(config, "student").vocab_size, len(token_bytes))
  return np.pad(token_bytes, (0, size - len(token_bytes)))
