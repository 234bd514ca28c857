"""Kernels of infinite width against integrals over angles and against wide networks."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from distill_jax.losses import infinite_width as iw

STD = 2**0.5


def test_arc_cosine_kernels_are_integrals_over_directions():
  theta = np.array([0.0, 0.3, np.pi / 2, 3.0, np.pi])
  phi = (np.arange(200_000) + 0.5) * 2 * np.pi / 200_000
  u, v = np.cos(phi), np.cos(phi - theta[:, None])
  both = np.mean((u > 0) & (v > 0), axis=1)
  product = 2 * np.mean(np.maximum(u, 0) * np.maximum(v, 0), axis=1)  # the squared radius is 2
  with jax.enable_x64(True):
    np.testing.assert_allclose(iw.arc_cosine_0(np.cos(theta)), 2 * both, atol=2e-5)
    np.testing.assert_allclose(iw.arc_cosine_1(np.cos(theta)), 2 * product, atol=1e-9)


@pytest.mark.parametrize("cosine", [-1.0, 1.0, 1.0000001])
def test_gradients_at_the_ends_are_finite(cosine):
  assert jax.grad(iw.arc_cosine_0)(cosine) == 0
  np.testing.assert_allclose(jax.grad(iw.arc_cosine_1)(cosine), cosine > 0)


def empirical(network, shapes, x, seeds):
  """The mean over draws of J J^T, J of the single output."""

  def one(seed):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    params = [jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]
    jacobian = jax.jacrev(network)(params, x)
    flat = jnp.concatenate([j.reshape(len(x), -1) for j in jacobian], axis=1)
    return flat @ flat.T

  return jnp.mean(jax.jit(lambda: jax.lax.map(one, jnp.arange(seeds)))(), axis=0)


def dense(params, x):
  x = x.reshape(len(x), -1)
  for k in range(0, len(params), 2):
    x = jax.nn.relu(x) if k else x
    x = STD / x.shape[1] ** 0.5 * x @ params[k] + 0.1 * params[k + 1]
  return x[:, 0]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_fully_connected_is_the_limit_of_wide_networks(depth):
  x = jax.random.normal(jax.random.key(1), (4, 2, 2, 2))
  widths = [8, *[256] * depth, 1]
  shapes = [s for a, b in itertools.pairwise(widths) for s in ((a, b), (b,))]
  got = iw.fully_connected(x, depth=depth).ntk
  want = empirical(dense, shapes, x, 64)
  assert np.linalg.norm(got - want) < 0.04 * np.linalg.norm(want)


def conv(params, x, pool):
  for k in range(0, len(params) - 2, 2):
    scale = STD / (9 * x.shape[-1]) ** 0.5
    x = jax.lax.conv_general_dilated(
      x, params[k], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(scale * x + 0.1 * params[k + 1])
    if pool:
      n, h, w, c = x.shape
      x = jnp.mean(x.reshape(n, h // 2, 2, w // 2, 2, c), axis=(2, 4))
  return dense(params[-2:], x)


@pytest.mark.slow
@pytest.mark.parametrize("pool", [True, False])
def test_convolutional_is_the_limit_of_wide_networks(pool):
  x = jax.random.normal(jax.random.key(2), (3, 4, 4, 2))
  width, last = 64, 1 if pool else 16
  shapes = [(3, 3, 2, width), (width,), (3, 3, width, width), (width,), (last * width, 1), (1,)]
  got = iw.convolutional(x, depth=2, pool=pool).ntk
  want = empirical(functools.partial(conv, pool=pool), shapes, x, 32)
  assert np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want)


@pytest.mark.parametrize(
  "kernels",
  [
    jax.jit(iw.fully_connected),
    jax.jit(functools.partial(iw.convolutional, depth=2)),
    jax.jit(functools.partial(iw.convolutional, depth=2, pool=False)),
  ],
)
def test_one_argument_is_both_arguments(kernels):
  x = jax.random.normal(jax.random.key(3), (3, 5, 4, 1))
  with jax.enable_x64(True):
    x = x.astype(jnp.float64)
    alone, both = kernels(x), kernels(x, x)
    np.testing.assert_allclose(alone.nngp, both.nngp, rtol=1e-12)
    np.testing.assert_allclose(
      alone.ntk, both.ntk, rtol=1e-7
    )  # arccos near 1 loses half the digits
    np.testing.assert_allclose(alone.ntk, alone.ntk.T, rtol=1e-12)
    assert np.linalg.eigvalsh(alone.ntk)[0] > 0
    part = kernels(x[:1], x[1:])
    np.testing.assert_allclose(part.ntk, alone.ntk[:1, 1:], rtol=1e-10)


def test_the_diagonal_is_exact_in_float32():
  x = jax.random.normal(jax.random.key(4), (5, 300)) * 7
  square = np.sum(np.square(x, dtype=np.float64), axis=1) / 300
  k = t = 0
  for layer in range(4):  # He's weights keep the variance, each bias adds 0.01
    k = (2 * square if layer == 0 else k) + 0.01
    t = k + t
  got = iw.fully_connected(x, depth=3)
  np.testing.assert_allclose(jnp.diag(got.nngp), k, rtol=1e-6)
  np.testing.assert_allclose(jnp.diag(got.ntk), t, rtol=1e-6)


@pytest.mark.parametrize("bias_std", [0.0, 0.1])
def test_zeros_and_duplicates_have_finite_gradients(bias_std):
  x = jnp.array([[0.0, 0.0], [1.0, 2.0], [1.0, 2.0], [-1.0, -2.0]])
  for y in (None, x):
    total = lambda x, y=y: jnp.sum(iw.fully_connected(x, y, depth=2, bias_std=bias_std).ntk)  # noqa: E731
    assert jnp.all(jnp.isfinite(jax.jit(jax.grad(total))(x)))


def test_gradients_are_those_of_differences():
  with jax.enable_x64(True):
    x = jax.random.normal(jax.random.key(5), (3, 4, 4, 2), jnp.float64)
    for kernels in (iw.fully_connected, functools.partial(iw.convolutional, depth=1)):
      total = lambda x, kernels=kernels: jnp.sum(jax.jit(kernels)(x).ntk ** 2)  # noqa: E731
      check_grads(total, (x,), order=1, modes=["rev"], rtol=1e-5)


def test_sizes_are_checked():
  with pytest.raises(ValueError, match="differ in size"):
    iw.fully_connected(jnp.ones((2, 3)), jnp.ones((2, 4)))
  with pytest.raises(ValueError, match="cannot be halved 3 times"):
    iw.convolutional(jnp.ones((1, 7, 8, 1)), depth=3)
