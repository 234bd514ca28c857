"""From numbers per token to numbers per sequence, and sums over what follows a token."""

import jax
import jax.numpy as jnp

from distill_jax.losses.reduce import masked_mean, masked_sum


def sequence_sum(x: jax.Array, where: jax.Array) -> jax.Array:
  """Sum over the tokens that count: [..., T] -> [...]. With log-probabilities: log p(sequence)."""
  return jnp.sum(jnp.where(where.astype(bool), x, 0.0), axis=-1)


def sequence_mean(x: jax.Array, where: jax.Array) -> jax.Array:
  """Mean over the tokens that count, 0 for a sequence without any: [..., T] -> [...]."""
  return masked_mean(x, where, axis=-1)


def remaining(where: jax.Array) -> jax.Array:
  """How many tokens count from each one on, itself included: bool[..., T] -> float32[..., T]."""
  counts = where.astype(jnp.float32)
  return jnp.flip(jnp.cumsum(jnp.flip(counts, axis=-1), axis=-1), axis=-1)


def discounted_returns(rewards: jax.Array, *, discount: float | jax.Array) -> jax.Array:
  """G_t = r_t + discount G_{t+1}: [..., T] -> [..., T]."""

  def step(following, reward):
    current = reward + discount * following
    return current, current

  first = jnp.zeros(rewards.shape[:-1], rewards.dtype)
  _, returns = jax.lax.scan(step, first, jnp.moveaxis(rewards, -1, 0), reverse=True)
  return jnp.moveaxis(returns, 0, -1)


def whiten(x: jax.Array, *, where: jax.Array | None = None, epsilon: float = 1e-8) -> jax.Array:
  """(x - mean) / sqrt(variance + epsilon) with mean and unbiased variance of what counts.

  MiniLLM (arXiv:2306.08543) whitens advantages so; the authors' code lets padding into the mean and
  the variance, which is `where=None`.
  """
  mean = masked_mean(x, where)
  square, count = masked_sum(jnp.square(x - mean), where)
  return (x - mean) * jax.lax.rsqrt(square / jnp.maximum(count - 1, 1) + epsilon)


def shared_length_weights(
  chosen: jax.Array, rejected: jax.Array, *, beyond: float
) -> tuple[jax.Array, jax.Array]:
  """Token weights 1 up to the length that both answers of a pair have, `beyond` after it, 0
  outside.

  Liu, Yu, Zhang, et al., Length Desensitization in Direct Preference Optimization
  (arXiv:2409.06411), eq. 9: log-probabilities are summed with these weights.

  Args:
    chosen, rejected: bool[..., T], the tokens of each answer.
  """
  shared = jnp.minimum(jnp.sum(chosen, axis=-1), jnp.sum(rejected, axis=-1))[..., None]

  def weights(where):
    where = where.astype(bool)
    within = jnp.cumsum(where, axis=-1) <= shared
    return jnp.where(where, jnp.where(within, 1.0, beyond), 0.0)

  return weights(chosen), weights(rejected)


def policy_weights(
  log_probs: jax.Array, log_sum_squares: jax.Array, *, where: jax.Array
) -> jax.Array:
  """exp of the mean over tokens of log pi(token) - log sum_v pi(v)^2, without gradient: [..., T] ->
  [...].

  How likely an answer is under the policy itself. A pair's loss times the weights of both answers
  is WPO (Zhou et al., Enhancing RLHF with Weighted Preference Optimization, arXiv:2406.11827).
  """
  return jnp.exp(sequence_mean(jax.lax.stop_gradient(log_probs - log_sum_squares), where))
