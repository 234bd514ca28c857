"""Kernel ridge regression from a small distilled set to real data, and the losses built on it.

S is the distilled (support) set of n rows, T a batch of real (target) rows. K_ss [n, n] and K_ts
[m, n] are kernels: `rbf`, `linear` on the features of a network, or those of `infinite_width.py`.
Labels are [n, C] and [m, C]; for classes usually one-hot minus 1 / C. Every loss is a scalar, in
float32 or float64. With a ridge as small as the papers', kernels of more than a few hundred rows
want float64.
"""

import jax
import jax.numpy as jnp

from distill_jax.losses.denoising import floats
from distill_jax.losses.log_probs import log_softmax


def linear(x: jax.Array, y: jax.Array) -> jax.Array:
  """<x_i, y_j>, at full precision on every device: [N, D] and [M, D] to [N, M]."""
  return jnp.matmul(*_flat(x, y), precision="highest")


def rbf(x: jax.Array, y: jax.Array, *, gamma: float) -> jax.Array:
  """exp(-gamma |x_i - y_j|^2): [N, ...] and [M, ...] to [N, M]."""
  rows, columns = _flat(x, y)
  square = jnp.sum(jnp.square(rows), axis=1)[:, None] + jnp.sum(jnp.square(columns), axis=0)
  return jnp.exp(-gamma * jnp.maximum(square - 2 * linear(x, y), 0.0))


def _flat(x, y):
  x, y = floats(x, y)
  return x.reshape(len(x), -1), y.reshape(len(y), -1).T


def relative_ridge(k_ss: jax.Array, scale: float | jax.Array) -> jax.Array:
  """|scale| trace(K_ss) / n, gradients included: the ridge of KIP and FRePo, in their code."""
  return jnp.abs(scale) * jnp.trace(k_ss) / len(k_ss)


def dual_weights(k_ss: jax.Array, y_s: jax.Array, *, ridge: float | jax.Array) -> jax.Array:
  """(K_ss + ridge I)^-1 y_s, [n, C], by LU: finite also where rounding leaves K_ss indefinite."""
  k_ss, y_s = floats(k_ss, y_s)
  return jnp.linalg.solve(k_ss + ridge * jnp.eye(len(k_ss), dtype=k_ss.dtype), y_s)


def predict(
  k_ss: jax.Array, k_ts: jax.Array, y_s: jax.Array, *, ridge: float | jax.Array
) -> jax.Array:
  """K_ts (K_ss + ridge I)^-1 y_s, [m, C]: the regression's outputs on T."""
  return jnp.matmul(k_ts, dual_weights(k_ss, y_s, ridge=ridge), precision="highest")


def label_solve(
  k_ss: jax.Array, k_ts: jax.Array, y_t: jax.Array, *, ridge: float | jax.Array
) -> jax.Array:
  """The labels y_s that minimise |K_ts (K_ss + ridge I)^-1 y_s - y_t|^2, of the least norm.

  Nguyen, Chen and Lee, Dataset Meta-Learning from Kernel Ridge-Regression (arXiv:2011.00050): the
  label solve.

  Returns:
    [n, C].
  """
  k_ss, k_ts, y_t = floats(k_ss, k_ts, y_t)
  inputs = k_ss + ridge * jnp.eye(len(k_ss), dtype=k_ss.dtype)
  operator = jnp.linalg.solve(inputs.T, k_ts.T).T
  cut = max(operator.shape) * jnp.finfo(operator.dtype).eps
  return jnp.matmul(jnp.linalg.pinv(operator, rtol=cut), y_t, precision="highest")


def kip(
  k_ss: jax.Array, k_ts: jax.Array, y_s: jax.Array, y_t: jax.Array, *, ridge: float | jax.Array
) -> jax.Array:
  """mean (prediction - y_t)^2 / 2 over rows and classes, of `predict`.

  Nguyen, Chen and Lee, Dataset Meta-Learning from Kernel Ridge-Regression (KIP, arXiv:2011.00050).
  The paper sums, the authors' code takes the mean; it has ridge = `relative_ridge(k_ss, 1e-6)`.
  """
  return jnp.mean(jnp.square(predict(k_ss, k_ts, y_s, ridge=ridge) - y_t)) / 2


def frepo(
  features_s: jax.Array,
  features_t: jax.Array,
  y_s: jax.Array,
  y_t: jax.Array,
  *,
  scale: float = 1e-6,
) -> jax.Array:
  """sum over classes of (prediction - y_t)^2 / 2, a mean over rows, K = F F^T of features.

  Gradients flow into the features of S and its labels, not into those of T. The ridge is
  `relative_ridge(K_ss, scale)`. Zhou, Nezhadarya and Ba, Dataset Distillation using Neural Feature
  Regression (FRePo, arXiv:2206.00719). The authors' code adds `label_margin` with most = 1 / C.

  Args:
    features_s: [n, D]; features_t: [m, D].
  """
  features_t = jax.lax.stop_gradient(features_t)
  k_ss, k_ts = linear(features_s, features_s), linear(features_t, features_s)
  error = predict(k_ss, k_ts, y_s, ridge=relative_ridge(k_ss, scale)) - y_t
  return jnp.mean(jnp.sum(jnp.square(error), axis=1)) / 2


def label_margin(y_s: jax.Array, *, most: float) -> jax.Array:
  """-mean min(largest - second largest of a row, most): keeps learned labels decided.

  In the authors' code, not in the papers: FRePo has most = 1 / C, RCIG 1 / (2 C).

  Args:
    y_s: [n, C], C at least 2.
  """
  top, _ = jax.lax.top_k(y_s, 2)
  return -jnp.mean(jnp.minimum(top[:, 0] - top[:, 1], most))


def krr_st(
  features_s: jax.Array,
  features_t: jax.Array,
  y_s: jax.Array,
  y_t: jax.Array,
  *,
  scale: float = 1e-6,
) -> jax.Array:
  """mean (prediction - y_t)^2 over rows and outputs; targets are features of a self-supervised net.

  A 1 is appended to the features; the ridge is sg[scale trace(K_ss)], which is not divided by n,
  unlike `relative_ridge`. Gradients flow into S, not into the features of T. Lee, Lee and Hwang,
  Self-Supervised Dataset Distillation for Transfer Learning (KRR-ST, arXiv:2310.06511), the ridge
  as in their code.

  Args:
    features_s: [n, D]; features_t: [m, D].
    y_s: [n, C], learned; y_t: [m, C], the self-supervised network's features of T.
  """
  with_one = lambda f: jnp.concatenate([f, jnp.ones_like(f[:, :1])], axis=1)  # noqa: E731
  features_s, features_t = with_one(features_s), with_one(jax.lax.stop_gradient(features_t))
  k_ss, k_ts = linear(features_s, features_s), linear(features_t, features_s)
  ridge = jax.lax.stop_gradient(scale * jnp.trace(k_ss))
  return jnp.mean(jnp.square(predict(k_ss, k_ts, y_s, ridge=ridge) - y_t))


def rcig_outer_prediction(
  features_s: jax.Array,
  outputs_s: jax.Array,
  y_s: jax.Array,
  features_t: jax.Array,
  outputs_t: jax.Array,
  *,
  ridge: float | jax.Array,
) -> jax.Array:
  """o_t + K_ts (K_ss + ridge I)^-1 (y_s - o_s), K = F F^T: the linearised network whose last layer
  is trained to the end on S, at T.

  Args:
    features_s, features_t: [n, D] and [m, D], last hidden features at the base parameters.
    outputs_s, outputs_t: [n, C] and [m, C], of the network linearised there, in the direction of
      the trained parameters: the tangents of `jax.jvp`, without the outputs at the base.
  """
  k_ss, k_ts = linear(features_s, features_s), linear(features_t, features_s)
  return outputs_t + predict(k_ss, k_ts, y_s - outputs_s, ridge=ridge)


def rcig_outer(prediction: jax.Array, y_t: jax.Array, log_temperature: jax.Array) -> jax.Array:
  """Mean cross-entropy of softmax(prediction exp(log_temperature)) against the labels y_t.

  Loo, Hasani, Lechner and Rus, Dataset Distillation with Convexified Implicit Gradients (RCIG,
  arXiv:2302.06755), the loss on real data; the authors' code adds `label_margin` with most = 1 / (2
  C).

  Args:
    prediction: [m, C], of `rcig_outer_prediction`.
    y_t: [m, C], one-hot less any constant: its smallest entry is subtracted.
    log_temperature: scalar, learned with S.
  """
  labels = y_t - jnp.min(y_t)
  log_p = log_softmax(prediction * jnp.exp(log_temperature))
  return -jnp.mean(jnp.sum(labels * log_p, axis=1))


def rcig_inner(
  features_s: jax.Array,
  outputs_s: jax.Array,
  y_s: jax.Array,
  tangent_square: jax.Array,
  *,
  ridge: float | jax.Array,
) -> jax.Array:
  """(|y_s - o_s - K W|^2 + ridge (tr W^T K W + |tangent|^2)) / (2 n C), what the network minimises.

  W = (K + ridge I)^-1 (y_s - o_s) and K = F F^T: the last layer is already solved for. It is a
  convex function of the tangent parameters, so its implicit gradient (`implicit.py`) is well
  defined. Loo et al., RCIG (arXiv:2302.06755).

  Args:
    features_s, outputs_s: as for `rcig_outer_prediction`.
    tangent_square: scalar, the sum of the squares of the tangent parameters.
  """
  k_ss = linear(features_s, features_s)
  residual = y_s - outputs_s
  weights = dual_weights(k_ss, residual, ridge=ridge)
  fitted = jnp.matmul(k_ss, weights, precision="highest")
  decay = ridge * (jnp.sum(weights * fitted) + tangent_square)
  return (jnp.sum(jnp.square(residual - fitted)) + decay) / (2 * y_s.size)


def rcig_finite(
  outputs_s: jax.Array, y_s: jax.Array, tangent_square: jax.Array, *, ridge: float | jax.Array
) -> jax.Array:
  """(|y_s - o_s|^2 + ridge |tangent|^2) / (2 n C): `rcig_inner` with the last layer not solved for.

  In the authors' code of RCIG (arXiv:2302.06755), for comparison.

  Args:
    outputs_s: [n, C], of the linearised network, the last layer's tangent included.
    tangent_square: scalar, as for `rcig_inner`.
  """
  return (jnp.sum(jnp.square(y_s - outputs_s)) + ridge * tangent_square) / (2 * y_s.size)
