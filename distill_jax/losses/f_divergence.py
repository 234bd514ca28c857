"""f-divergence distribution matching: how much each sample's score difference counts.

D_f(p || q) = E_q f(p / q), p the data's or the teacher's density, q the generator's. Its gradient
is that of the reverse KL with each sample weighed by h(r) = r^2 f''(r) at r = p / q, and a
discriminator's logit estimates log r. Xu, Nie, Vahdat, One-step Diffusion Models with f-Divergence
Distribution Matching (f-distill, arXiv:2502.15681).
"""

import jax
import jax.numpy as jnp

DIVERGENCES = {  # name: (f(r), constant, h(r) / constant)
  "reverse_kl": (lambda r: -jnp.log(r), 1, jnp.ones_like),
  "forward_kl": (lambda r: r * jnp.log(r), 1, lambda r: r),
  "js": (lambda r: r * jnp.log(r) - (r + 1) * jnp.log((r + 1) / 2), 1, lambda r: 1 - 1 / (1 + r)),
  "softened_reverse_kl": (lambda r: (r + 1) * jnp.log((r + 1) / r), 1, lambda r: 1 / (1 + r)),
  "neyman": (lambda r: jnp.square(1 - r) / r, 2, lambda r: 1 / jnp.maximum(r, 1e-8)),
  "squared_hellinger": (lambda r: 1 - jnp.sqrt(r), 0.25, jnp.sqrt),
  "jeffreys": (lambda r: (r - 1) * jnp.log(r), 1, lambda r: 1 + r),
}


def f(ratio: jax.Array, *, divergence: str) -> jax.Array:
  """f(r), elementwise; D_f = E_q f(r). At r = 1 softened_reverse_kl's is 2 log 2, the others 0."""
  return _named(divergence)[0](ratio)


def weight(ratio: jax.Array, *, divergence: str, constants: bool = True) -> jax.Array:
  """h(r) = r^2 f''(r), elementwise.

  reverse_kl 1, forward_kl r, js r / (1 + r), softened_reverse_kl 1 / (1 + r), neyman 2 / r,
  squared_hellinger sqrt(r) / 4, jeffreys 1 + r. js is twice the Jensen-Shannon divergence.

  Args:
    ratio: r >= 0, any shape.
    divergence: a key of `DIVERGENCES`.
    constants: False leaves out the factors 2 and 1/4, as FastGen does: `batch_normalize` cancels
      them.

  Raises:
    ValueError: no such divergence.
  """
  _, constant, h = _named(divergence)
  return constant * h(ratio) if constants else h(ratio)


def density_ratio(
  logits: jax.Array, *, lower: float = 0.1, upper: float = 20.0, bound: float = 10.0
) -> jax.Array:
  """r = p / q of generated samples: exp of the mean logit, clipped; [B], without gradient.

  Args:
    logits: [B, ...] of a discriminator that is positive on data, averaged over all but B.
    lower, upper: r is clipped to them.
    bound: the mean logit is clipped to [-bound, bound] first.
  """
  mean = jnp.mean(logits, axis=tuple(range(1, logits.ndim)))
  ratio = jnp.exp(jnp.clip(mean, -bound, bound))
  return jax.lax.stop_gradient(jnp.clip(ratio, lower, upper))


def normalize_by_level(
  ratio: jax.Array,
  t: jax.Array,
  bins: jax.Array,
  *,
  decay: float,
  t_min: float = 0.002,
  t_max: float = 80.0,
) -> tuple[jax.Array, jax.Array]:
  """r divided by its running mean at like noise levels, and those means.

  The levels from t_min to t_max are cut into len(bins) even parts. A part that the batch visits
  gets decay old + (1 - decay) mean of r in it; the others stay.

  Args:
    ratio, t: [B].
    bins: [N], the running means so far; ones at first.

  Returns:
    (r / bins of its part [B], bins [N]).
  """
  n = len(bins)
  index = jnp.floor((t - t_min) / ((t_max - t_min) / n)).astype(jnp.int32)
  member = jnp.clip(index, 0, n - 1)[:, None] == jnp.arange(n)
  count = jnp.sum(member, axis=0)
  mean = jnp.sum(jnp.where(member, ratio[:, None], 0), axis=0) / (count + 1e-6)
  bins = jnp.where(count > 0, decay * bins + (1 - decay) * mean, bins)
  own = jnp.sum(jnp.where(member, bins, 0), axis=1)
  return ratio / (own + 1e-6), bins


def batch_normalize(h: jax.Array) -> jax.Array:
  """h / (mean of h over the batch + 1e-6): [B] -> [B], about 1 on average."""
  return h / (jnp.mean(h) + 1e-6)


def _named(divergence: str):
  if divergence not in DIVERGENCES:
    raise ValueError(f"no f-divergence {divergence!r}: {', '.join(DIVERGENCES)}")
  return DIVERGENCES[divergence]
