"""Kernel ridge regression against ridge regression on features and its optimality conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import kernels


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def ridge_regression(f_s, y_s, f_t, ridge):
  """The primal: f_t (F^T F + ridge I)^-1 F^T y."""
  f_s, y_s, f_t = map(np.asarray, (f_s, y_s, f_t))
  return f_t @ np.linalg.solve(f_s.T @ f_s + ridge * np.eye(f_s.shape[1]), f_s.T @ y_s)


@pytest.mark.parametrize("n", [1, 6])
def test_no_ridge_interpolates_the_support(n):
  x, y = normal(0, n, 2, 3), normal(1, n, 3)
  k = kernels.rbf(x, x, gamma=0.2)
  np.testing.assert_allclose(kernels.predict(k, k, y, ridge=0.0), y, rtol=1e-9)


def test_a_large_ridge_predicts_nothing():
  k = kernels.rbf(normal(0, 4, 3), normal(0, 4, 3), gamma=0.2)
  assert jnp.max(jnp.abs(kernels.predict(k, k, normal(1, 4, 2), ridge=1e9))) < 1e-8


def test_rbf_is_that_of_differences():
  x, y = normal(0, 4, 5), normal(1, 3, 5) + 100
  square = jnp.sum((x[:, None] - y[None]) ** 2, axis=-1)
  np.testing.assert_allclose(kernels.rbf(x, y, gamma=1e-4), jnp.exp(-1e-4 * square), rtol=1e-10)
  near = x.astype(jnp.float32) * 1e3
  assert jnp.max(kernels.rbf(near, near, gamma=1.0)) <= 1
  np.testing.assert_allclose(jnp.diag(kernels.rbf(x, x, gamma=0.1)), 1, rtol=1e-12)


def test_relative_ridge_is_the_mean_of_the_diagonal():
  k = jnp.diag(jnp.array([1.0, 2.0, 6.0]))
  np.testing.assert_allclose(kernels.relative_ridge(k, -0.1), 0.3)


def test_label_solve_minimises_the_loss():
  x_s, x_t, y_t = normal(0, 4, 5), normal(1, 20, 5), normal(2, 20, 3)
  k_ss, k_ts = kernels.rbf(x_s, x_s, gamma=0.1), kernels.rbf(x_t, x_s, gamma=0.1)
  loss = lambda y: kernels.kip(k_ss, k_ts, y, y_t, ridge=0.01)  # noqa: E731
  y = kernels.label_solve(k_ss, k_ts, y_t, ridge=0.01)
  np.testing.assert_allclose(jax.grad(loss)(y), 0, atol=1e-12)
  assert loss(y) < loss(y + 0.01 * normal(3, 4, 3))


def test_label_solve_with_few_targets_fits_them_with_the_least_norm():
  x_s, x_t, y_t = normal(0, 6, 5), normal(1, 2, 5), normal(2, 2, 3)
  k_ss, k_ts = kernels.rbf(x_s, x_s, gamma=0.1), kernels.rbf(x_t, x_s, gamma=0.1)
  y = kernels.label_solve(k_ss, k_ts, y_t, ridge=0.01)
  np.testing.assert_allclose(kernels.predict(k_ss, k_ts, y, ridge=0.01), y_t, rtol=1e-8)
  operator = k_ts @ jnp.linalg.inv(k_ss + 0.01 * jnp.eye(6))
  np.testing.assert_allclose(y, jnp.linalg.lstsq(operator, y_t)[0], rtol=1e-8)


@pytest.mark.parametrize(("n", "size"), [(1, 4), (3, 8), (9, 4)])
def test_frepo_is_ridge_regression_on_the_features(n, size):
  f_s, f_t, y_s, y_t = normal(0, n, size), normal(1, 5, size), normal(2, n, 3), normal(3, 5, 3)
  ridge = 0.1 * jnp.sum(f_s**2) / n
  want = 0.5 * np.sum((ridge_regression(f_s, y_s, f_t, ridge) - y_t) ** 2, axis=1).mean()
  np.testing.assert_allclose(kernels.frepo(f_s, f_t, y_s, y_t, scale=0.1), want, rtol=1e-9)


@pytest.mark.parametrize(("n", "size"), [(1, 4), (9, 4)])
def test_krr_st_is_ridge_regression_with_a_bias(n, size):
  f_s, f_t, y_s, y_t = normal(0, n, size), normal(1, 5, size), normal(2, n, 3), normal(3, 5, 3)
  one_s, one_t = (np.concatenate([f, np.ones((len(f), 1))], axis=1) for f in (f_s, f_t))
  want = np.mean((ridge_regression(one_s, y_s, one_t, 0.1 * np.sum(one_s**2)) - y_t) ** 2)
  np.testing.assert_allclose(kernels.krr_st(f_s, f_t, y_s, y_t, scale=0.1), want, rtol=1e-9)


@pytest.mark.parametrize("loss", [kernels.frepo, kernels.krr_st])
def test_features_of_real_data_are_constants(loss):
  arrays = normal(0, 3, 4), normal(1, 5, 4), normal(2, 3, 2), normal(3, 5, 2)
  synthetic, real = jax.grad(loss, argnums=(0, 1))(*arrays)
  assert jnp.any(synthetic != 0) and not jnp.any(real)


def test_label_margin_stops_at_most():
  labels = jnp.array([[0.9, 0.1, 0.0], [0.4, 0.3, 0.3]])
  np.testing.assert_allclose(kernels.label_margin(labels, most=0.5), -(0.5 + 0.1) / 2)
  gradient = jax.grad(lambda y: kernels.label_margin(y, most=0.5))(labels)
  np.testing.assert_allclose(gradient[0], 0)
  np.testing.assert_allclose(gradient[1, 0], -0.5)


def test_rcig_inner_is_the_least_of_a_ridge_regression():
  """min_w |r - F w|^2 + ridge |w|^2 = ridge r^T (K + ridge I)^-1 r."""
  f, outputs, y, ridge = normal(0, 5, 3), normal(1, 5, 2), normal(2, 5, 2), 0.3
  r = np.asarray(y - outputs)
  least = ridge * np.trace(r.T @ np.linalg.solve(np.asarray(f @ f.T) + ridge * np.eye(5), r))
  want = (least + ridge * 7.0) / (2 * 5 * 2)
  got = kernels.rcig_inner(f, outputs, y, jnp.array(7.0), ridge=ridge)
  np.testing.assert_allclose(got, want, rtol=1e-9)
  w = np.linalg.lstsq(np.asarray(f), r)[0]  # any last layer in the tangent is no better
  finite = kernels.rcig_finite(outputs + f @ w, y, 7.0 + jnp.sum(w**2), ridge=ridge)
  assert finite > got


def test_rcig_outer_prediction_without_support_residual_is_the_network():
  f_s, f_t, outputs_s, outputs_t = (
    normal(0, 3, 4),
    normal(1, 5, 4),
    normal(2, 3, 2),
    normal(3, 5, 2),
  )
  got = kernels.rcig_outer_prediction(f_s, outputs_s, outputs_s, f_t, outputs_t, ridge=0.1)
  np.testing.assert_allclose(got, outputs_t)


def test_rcig_outer_is_cross_entropy_of_tempered_outputs():
  prediction, labels = normal(0, 4, 3), jnp.eye(3)[jnp.array([0, 2, 2, 1])]
  log_p = jax.nn.log_softmax(2.5 * prediction)
  want = -jnp.mean(jnp.sum(labels * log_p, axis=1))
  for constant in (0, 1 / 3):
    got = kernels.rcig_outer(prediction, labels - constant, jnp.log(2.5))
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_float32_stays_finite_where_the_kernel_is_singular():
  f = normal(0, 3, 2).astype(jnp.float32)
  f = jnp.concatenate([f, f, f])
  y, y_t = jnp.ones((9, 2), jnp.float32), jnp.ones((3, 2), jnp.float32)
  loss, gradient = jax.value_and_grad(kernels.frepo)(f, f[:3], y, y_t)
  assert loss.dtype == jnp.float32 and jnp.isfinite(loss) and jnp.all(jnp.isfinite(gradient))
