"""Which real examples to keep: functions of features, scores and records of training."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def herding(
  features: jax.Array, n: int, *, farthest: bool = False, where: jax.Array | None = None
) -> jax.Array:
  """n examples whose mean follows the mean of all, one after another.

  i_k = argmin |k mu - sum_{j < k} x_{i_j} - x| over the examples x that are not chosen yet.

  Welling, Herding Dynamical Weights to Learn, ICML 2009, without repetition. Usually run within a
  class.

  Args:
    features: [N, D].
    n: at most N.
    farthest: argmax in place of argmin, as the code of DeepCore has it.
    where: bool [N], the examples there are, such as those of one class, at least n; None: all.

  Returns:
    int [n], in the order of choice; the first of equally good ones.

  Raises:
    ValueError: n is not from 1 to N.
  """
  _check(n, len(features))
  features, where = _floats(features), _all(where, features)
  mean = jnp.mean(features, axis=0, where=where[:, None])

  def step(state, k):
    total, chosen = state
    square = jnp.sum(jnp.square((k + 1) * mean - total - features), axis=1)
    i = jnp.argmin(jnp.where(chosen, jnp.inf, -square if farthest else square))
    return (total + features[i], chosen.at[i].set(True)), i

  return jax.lax.scan(step, (jnp.zeros_like(mean), ~where), jnp.arange(n))[1]


def k_center(
  features: jax.Array, n: int, *, start: jax.Array, where: jax.Array | None = None
) -> jax.Array:
  """n examples, each the farthest from those chosen before: the greedy answer to k-center.

  Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach
  (arXiv:1708.00489), algorithm 1. In the space of class probabilities it is PCoreSet's: Kang et
  al., PCoreSet: Effective Active Learning through Knowledge Distillation from Vision-Language
  Models (arXiv:2506.00910).

  Args:
    features: [N, D]; distances are Euclidean.
    n: at most N - M.
    start: int [M], different examples that are chosen already, at least one.
    where: bool [N], the examples that may be chosen, at least n beside `start`; None: all.

  Returns:
    int [n], in the order of choice, without `start`; the first of equally far ones.

  Raises:
    ValueError: `start` is empty, or n is not from 1 to N - M.
  """
  start = jnp.asarray(start)
  if not start.size:
    raise ValueError("k-center needs an example to begin with")
  _check(n, len(features) - start.size)
  features = _floats(features)

  def closer(distance, i):
    return jnp.minimum(distance, jnp.sum(jnp.square(features - features[i]), axis=1)), None

  def step(state, _):
    distance, chosen = state
    i = jnp.argmax(jnp.where(chosen, -jnp.inf, distance))
    return (closer(distance, i)[0], chosen.at[i].set(True)), i

  distance = jax.lax.scan(closer, jnp.full(len(features), jnp.inf, features.dtype), start)[0]
  chosen = (~_all(where, features)).at[start].set(True)
  return jax.lax.scan(step, (distance, chosen), length=n)[1]


def k_means(
  features: jax.Array,
  n: int,
  *,
  key: jax.Array,
  iterations: int = 20,
  where: jax.Array | None = None,
) -> jax.Array:
  """n different examples, each the nearest to a mean of k-means.

  Lloyd's iterations, c_k = mean of the examples whose nearest mean is c_k, from the seeds of
  k-means++, each drawn with a probability as its squared distance to those before (Arthur and
  Vassilvitskii, k-means++: The Advantages of Careful Seeding, SODA 2007).

  Args:
    features: [N, D].
    n: number of means, at most N.
    key: of the seeds.
    iterations: Lloyd's.
    where: bool [N], the examples there are, at least n; None: all.

  Returns:
    int [n]. A mean without examples stays where it was.

  Raises:
    ValueError: n is not from 1 to N.
  """
  _check(n, len(features))
  features, where = _floats(features), _all(where, features)

  def squares(means):  # [N, n]
    dots = jnp.einsum("nd,kd->nk", features, means, precision="highest")
    lengths = jnp.sum(features**2, axis=1)[:, None] + jnp.sum(means**2, axis=1)
    return jnp.maximum(lengths - 2 * dots, 0.0)

  def seed(distance, key):
    i = jax.random.categorical(key, jnp.where(where, jnp.log(distance), -jnp.inf))
    return jnp.minimum(distance, jnp.sum(jnp.square(features - features[i]), axis=1)), i

  def lloyd(means, _):
    nearest = jnp.where(where, jnp.argmin(squares(means), axis=1), n)
    count = jax.ops.segment_sum(jnp.ones(len(features)), nearest, n + 1)[:n, None]
    total = jax.ops.segment_sum(features, nearest, n + 1)[:n]
    return jnp.where(count > 0, total / jnp.maximum(count, 1), means), None

  def choose(chosen, distance):
    i = jnp.argmin(jnp.where(chosen, jnp.inf, distance))
    return chosen.at[i].set(True), i

  first = jnp.full(len(features), jnp.finfo(features.dtype).max)  # all alike
  _, seeds = jax.lax.scan(seed, first, jax.random.split(key, n))
  means = jax.lax.scan(lloyd, features[seeds], length=iterations)[0]
  return jax.lax.scan(choose, ~where, squares(means).T)[1]


def error_norm(logits: jax.Array, targets: jax.Array, *, order: int = 2) -> jax.Array:
  """|softmax(z) - y|_order, EL2N for order 2: hard examples score high.

  Paul, Ganguli, Dziugaite, Deep Learning on a Data Diet: Finding Important Examples Early in
  Training (arXiv:2107.07075). The paper averages over several networks early in training.

  Args:
    logits: [N, C].
    targets: [N, C], one-hot.
    order: 2, or 1 for the sum of absolute errors.

  Returns:
    [N].
  """
  error = jnp.abs(jax.nn.softmax(logits) - targets)
  return jnp.sum(error, axis=1) if order == 1 else jnp.sqrt(jnp.sum(error**2, axis=1))


def margin(logits: jax.Array, targets: jax.Array, *, total: bool = False) -> jax.Array:
  """max over the wrong classes c of p_c - p_y, p = softmax(z); their sum if `total`.

  From -1, surely right, to 1, surely wrong. Arguments as `error_norm`; [N].
  """
  p = jax.nn.softmax(logits)
  gap = p - jnp.sum(p * targets, axis=1, keepdims=True)
  if total:
    return jnp.sum(jnp.where(targets > 0, 0.0, gap), axis=1)
  return jnp.max(jnp.where(targets > 0, -jnp.inf, gap), axis=1)


def gradient_norm(loss: Callable, params: Any, *examples: Any) -> jax.Array:
  """|d loss(params, example) / d params| of each example, over all parameters: GraNd.

  Paul, Ganguli, Dziugaite (arXiv:2107.07075). The paper averages over several networks. It holds
  one gradient for each example at once.

  Args:
    loss: (params, *example) -> scalar, of a single example.
    params: pytree.
    examples: pytrees of arrays [N, ...].

  Returns:
    [N].
  """

  def norm(*example):
    leaves = jax.tree.leaves(jax.grad(loss)(params, *example))
    return jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in leaves))

  return jax.vmap(norm)(*examples)


def entropy(probabilities: jax.Array, *, epsilon: float = 0.0) -> jax.Array:
  """-sum_c p log(p + epsilon): [N, C] to [N] nats. PCoreSet's code has epsilon 1e-10."""
  p = jnp.asarray(probabilities)
  safe = jnp.where(p > 0, p + epsilon, 1.0)
  return -jnp.sum(p * jnp.log(safe), axis=-1)


def two_heads(
  logits: jax.Array, distilled: jax.Array, *, alpha: float = 0.5, beta: float = 1.0
) -> jax.Array:
  """(1 - alpha) softmax(logits) + alpha softmax(distilled / beta), the probabilities of PCoreSet.

  Args:
    logits: [N, C], of the head that is trained on labels.
    distilled: [N, C], of the head that is trained on a teacher.
    alpha: weight of the second.
    beta: its temperature.
  """
  return (1 - alpha) * jax.nn.softmax(logits) + alpha * jax.nn.softmax(distilled / beta)


def forgetting_events(correct: Any) -> Any:
  """How often each example went from right to wrong: bool or 0/1 [N, T] to int [N].

  Toneva et al., An Empirical Study of Example Forgetting during Deep Neural Network Learning
  (arXiv:1812.05159). `correct` records each example's presentations in training, in order. An
  example that was never right has 0 events: see `forgetting_scores`.
  """
  correct = _record(correct)
  return (correct[:, :-1] & ~correct[:, 1:]).sum(axis=1)


def forgetting_scores(correct: Any) -> Any:
  """`forgetting_events`; T, more than can be, for an example that was never right."""
  correct = _record(correct)
  return forgetting_events(correct) + ~correct.any(axis=1) * correct.shape[1]


def first_learned(correct: np.ndarray) -> np.ndarray:
  """The first presentation at which each example was right, -1 for never: int64 [N]."""
  correct = _record(correct)
  return np.where(correct.any(axis=1), np.argmax(correct, axis=1), -1)


def presentations_to_learn(correct: np.ndarray) -> np.ndarray:
  """The presentation from which on each example stayed right; T if the last was wrong."""
  correct = _record(correct)
  last_wrong = correct.shape[1] - np.argmax(~correct[:, ::-1], axis=1)
  return np.where(correct.all(axis=1), 0, last_wrong)


def _all(where, features):
  return jnp.ones(len(features), bool) if where is None else jnp.asarray(where)


def _floats(features):
  """As a JAX array, in float32 at least."""
  features = jnp.asarray(features)
  return features.astype(jnp.promote_types(features.dtype, jnp.float32))


def _record(correct):
  correct = correct.astype(bool)
  if correct.ndim != 2 or not correct.shape[1]:
    raise ValueError(f"a record of {correct.shape}, not of examples and their presentations")
  return correct


def _check(n, most):
  if not 1 <= n <= most:
    raise ValueError(f"{n} examples of {most}")
