"""What every loss on distributions starts from: log-probabilities that survive -inf, masks and
peaked rows.
"""

import jax
import jax.numpy as jnp


def log_softmax(logits: jax.Array, *, temperature: float | jax.Array = 1.0) -> jax.Array:
  """log softmax(logits / temperature) over the last axis, in float32 or wider.

  Entries of -inf stay -inf and get no gradient. A row of nothing but -inf has no distribution: all
  its entries stay -inf.

  Args:
    logits: [..., V].
    temperature: a number or an array that broadcasts to [...].

  Returns:
    [..., V], float32 (float64 for float64 logits).
  """
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / _last(temperature)
  top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  shifted = logits - jnp.where(top > -jnp.inf, top, 0.0)
  total = jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True)
  return shifted - jnp.log(jnp.where(total > 0, total, 1.0))


def pair(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  where: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Log-probabilities of student and teacher at positions that count, uniform ones at others.

  A position counts if `where` says so and if both rows hold a finite logit. No gradient flows into
  the teacher.

  Args:
    student_logits, teacher_logits: [..., V].
    temperature: divides both logits.
    where: bool[...] or None.

  Returns:
    log q (student) [..., V], log p (teacher) [..., V] and bool[...], the positions that count.

  Raises:
    ValueError: the two logits differ in shape.
  """
  if student_logits.shape != teacher_logits.shape:
    raise ValueError(
      "student and teacher logits differ in shape: "
      f"{student_logits.shape} and {teacher_logits.shape}"
    )
  dtype = jnp.promote_types(jnp.result_type(student_logits, teacher_logits), jnp.float32)
  teacher_logits = jax.lax.stop_gradient(teacher_logits)
  tops = [
    jnp.max(jax.lax.stop_gradient(x), axis=-1, keepdims=True)
    for x in (student_logits, teacher_logits)
  ]
  counts = (tops[0] > -jnp.inf) & (tops[1] > -jnp.inf)
  if where is not None:
    counts = counts & where.astype(bool)[..., None]

  def log_probs(logits, top):  # one pass for the maximum, one for the sum
    shifted = (logits.astype(dtype) - top.astype(dtype)) / _last(temperature)
    shifted = jnp.where(counts, shifted, 0.0)
    return shifted - jnp.log(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True))

  log_q, log_p = map(log_probs, (student_logits, teacher_logits), tops)
  return log_q, log_p, counts[..., 0]


def kl(log_a: jax.Array, log_b: jax.Array) -> jax.Array:
  """sum_v a (log a - log b) over the last axis, the sum of `kl_terms`."""
  return jnp.sum(kl_terms(log_a, log_b), axis=-1)


def kl_terms(log_a: jax.Array, log_b: jax.Array) -> jax.Array:
  """a (log a - log b) of each id, with 0 log 0 = 0 in value and in gradient.

  Where b is 0 and a is not, the value is +inf and the gradient is that of the other terms: never
  NaN.
  """
  both = (log_a > -jnp.inf) & (log_b > -jnp.inf)
  log_ratio = jnp.where(both, log_a, 0.0) - jnp.where(both, log_b, 0.0)
  missing = (log_a > -jnp.inf) & (log_b == -jnp.inf)
  return jnp.exp(log_a) * log_ratio + jnp.where(missing, jnp.inf, 0.0)


def mixture(log_a: jax.Array, log_b: jax.Array, weight: float | jax.Array) -> jax.Array:
  """log(weight a + (1 - weight) b); `weight` is in (0, 1), a number or an array that broadcasts to
  [...].

  One logarithm of the mixed probabilities instead of logaddexp: half the transcendental functions.
  Where the sum leaves the range of the dtype the larger log-term stands in for it, off by less than
  log 2 on a term that weighs nothing.
  """
  weight = jnp.asarray(_last(weight), log_a.dtype)
  mixed = weight * jnp.exp(log_a) + (1 - weight) * jnp.exp(log_b)
  normal = mixed > jnp.finfo(log_a.dtype).tiny
  larger = jnp.maximum(log_a + jnp.log(weight), log_b + jnp.log1p(-weight))
  return jnp.where(normal, jnp.log(jnp.where(normal, mixed, 1.0)), larger)


def entropy(logits: jax.Array, *, temperature: float | jax.Array = 1.0) -> jax.Array:
  """-sum_v p log p of softmax(logits / temperature): [..., V] -> [...], nats; 0 for a row of
  nothing but -inf.
  """
  log_p = log_softmax(logits, temperature=temperature)
  return -jnp.sum(jnp.exp(log_p) * jnp.where(log_p > -jnp.inf, log_p, 0.0), axis=-1)


def token_log_probs(
  logits: jax.Array,
  targets: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  where: jax.Array | None = None,
) -> jax.Array:
  """log softmax(logits / temperature)[target] of each position.

  Args:
    logits: [..., V].
    targets: int[...]; anything, even a negative id, at positions that do not count.
    temperature: divides the logits.
    where: bool[...], the positions that count; the others return 0 and pass no gradient.

  Returns:
    [...], float32 (float64 for float64 logits); -inf for a target outside the vocabulary's mask.
  """
  if where is not None:
    logits = jnp.where(where.astype(bool)[..., None], logits, 0.0)
    targets = jnp.where(where.astype(bool), targets, 0)
  log_p = log_softmax(logits, temperature=temperature)
  picked = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
  return picked if where is None else jnp.where(where.astype(bool), picked, 0.0)


def _last(x: float | jax.Array) -> float | jax.Array:
  return x[..., None] if isinstance(x, jax.Array) and x.ndim else x
