"""Divergences with exponents: alpha-beta and the clipped alpha-divergence.

Conventions as in `divergences.py`: p is the teacher, q the student, [..., V] in, [...] nats out.
"""

import jax
import jax.numpy as jnp

from distill_jax.losses.log_probs import pair


def alpha_beta(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  alpha: float,
  beta: float,
  temperature: float | jax.Array = 1.0,
  where: jax.Array | None = None,
) -> jax.Array:
  """-1/(a b) sum_v [p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)], and its limits at 0.

  a = 1, b = 0 is forward KL; a = 0, b = 1 reverse KL; a = b = 0 half the squared distance of the
  log-probabilities. Ids that one side excludes count only where the limit is finite.

  Wang et al., ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation
  via Alpha-Beta-Divergence (arXiv:2505.04560), eq. 4, after Cichocki et al. (2011). On the axes
  and where a + b = 0 the authors' code has 1/a (or 1/b) where the limit has its square.
  """
  log_q, log_p, counts = pair(student_logits, teacher_logits, temperature=temperature, where=where)
  outside = (log_p == -jnp.inf) & (log_q == -jnp.inf)
  log_p, log_q = jnp.where(outside, 0.0, log_p), jnp.where(outside, 0.0, log_q)

  def power(log_x, exponent):
    return jnp.exp(exponent * log_x)

  both = alpha + beta
  if alpha == 0 and beta == 0:
    terms = jnp.square(log_q - log_p) / 2
  elif alpha == 0:
    terms = _bregman(log_q, log_p, beta)
  elif beta == 0:
    terms = _bregman(log_p, log_q, alpha)
  elif both == 0:
    log_ratio = alpha * (log_q - log_p)
    terms = (log_ratio + jnp.expm1(-log_ratio)) / alpha**2
  else:
    terms = alpha / both * power(log_p, both) + beta / both * power(log_q, both)
    terms = (terms - power(log_p, alpha) * power(log_q, beta)) / (alpha * beta)
  return jnp.where(counts, jnp.sum(jnp.where(outside, 0.0, terms), axis=-1), 0.0)


def _bregman(log_x: jax.Array, log_y: jax.Array, a: float) -> jax.Array:
  """[x^a log(x^a / y^a) - x^a + y^a] / a^2 per id."""
  x, y = jnp.exp(a * log_x), jnp.exp(a * log_y)
  finite = log_x > -jnp.inf
  log_ratio = jnp.where(finite, log_x, 0.0) - jnp.where(finite, log_y, 0.0)
  return (x * a * log_ratio - x + y) / a**2


def clipped_alpha(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  alpha: float,
  clip: float = 1e3,
  where: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """1/(a (a - 1)) sum_v q [(p/q)^a - 1] with (p/q)^a at most `clip`: a = 0 is reverse KL, 1
  forward.

  Wang, Gong, Li, Liu, Chandra, AlphaNet: Improved Training of Supernets with Alpha-Divergence
  (arXiv:2102.07954), section 3.

  Returns:
    A surrogate to be minimised, [...]: its gradient is the divergence's with clipped ratios taken
    as constants; its value means nothing. And the divergence with clipped ratios, without gradient.
  """
  log_q, log_p, counts = pair(student_logits, teacher_logits, where=where)
  fixed = jax.lax.stop_gradient(log_q)
  q = jnp.exp(fixed)
  inside = fixed > -jnp.inf
  log_ratio = jnp.where(inside, log_p, 0.0) - jnp.where(inside, fixed, 0.0)
  if alpha == 0:
    log_ratio = jnp.minimum(log_ratio, jnp.log(clip))
    value, slope = -log_ratio, log_ratio - 1
  elif alpha == 1:
    slope = jnp.exp(log_ratio)
    value = slope * jnp.where(log_ratio > -jnp.inf, log_ratio, 0.0)
  else:
    power = jnp.minimum(jnp.exp(alpha * log_ratio), clip)
    base = 1 / (alpha * (alpha - 1))
    value, slope = (power - 1) * base, power / alpha + base
  surrogate = -jnp.sum(q * slope * jnp.where(inside, log_q, 0.0), axis=-1)
  return jnp.where(counts, surrogate, 0.0), jnp.where(counts, jnp.sum(q * value, axis=-1), 0.0)
