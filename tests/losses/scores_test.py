"""Score distillation on images: directions, normalisers, NaN, extreme values, batches of one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import f_divergence as fd
from distill_jax.losses import mmd, scores


def draw(seed, shape=(3, 4, 4, 2)):
  return jax.random.normal(jax.random.key(seed), shape)


def gradient(loss, x):
  return jax.grad(lambda x: jnp.sum(loss(x)))(x)


def test_pseudo_loss_keeps_gradients_below_the_rounding_of_x():
  x, g = jnp.full((1, 2), 1000.0), jnp.full((1, 2), 1e-7)
  np.testing.assert_allclose(gradient(lambda x: scores.pseudo_loss(x, g), x), g, rtol=1e-6)
  np.testing.assert_allclose(scores.pseudo_loss(x, g), g**2 / 2, rtol=1e-6)


def test_no_gradient_reaches_the_networks():
  x, real, fake = draw(0), draw(1), draw(2)
  for loss in (scores.distribution_matching, scores.diff_instruct):
    grads = jax.grad(lambda *a, loss=loss: loss(*a).sum(), (1, 2))(x, real, fake)
    assert all(not g.any() for g in grads)
  grads = jax.grad(lambda *a: scores.noise_difference(*a, weight=1.0).sum(), (1, 2))(x, real, fake)
  assert all(not g.any() for g in grads)


def test_dmd_is_normalised_for_each_example():
  x, real, fake = draw(0), draw(1), draw(2)
  got = gradient(lambda x: scores.distribution_matching(x, real, fake), x)
  for i in range(len(x)):
    want = (fake[i] - real[i]) / jnp.mean(jnp.abs(x[i] - real[i]))
    np.testing.assert_allclose(got[i], want, rtol=1e-5)
    one = slice(i, i + 1)  # an example does not see its batch
    alone = gradient(lambda x, i=one: scores.distribution_matching(x, real[i], fake[i]), x[one])
    np.testing.assert_allclose(got[one], alone, rtol=1e-6)


def test_dmd_epsilon_floor_and_weight():
  x, real, fake = jnp.ones((2, 3)), jnp.zeros((2, 3)), jnp.full((2, 3), 2.0)

  def slope(**settings):
    return gradient(lambda x: scores.distribution_matching(x, real, fake, **settings), x)[:, 0]

  np.testing.assert_allclose(slope(), 2)
  np.testing.assert_allclose(slope(epsilon=1.0), 1)
  np.testing.assert_allclose(slope(floor=4.0), 0.5)
  np.testing.assert_allclose(slope(normalize=False), 2)
  np.testing.assert_allclose(slope(weight=jnp.array([0.5, 3.0])), [1, 6])


def test_dmd_where_the_teacher_returns_x():
  """0/0 is 0, x/0 the largest number, and a floor makes it neither."""
  x, fake = jnp.ones((2, 3)), jnp.array([[1.0] * 3, [2.0] * 3])
  got = gradient(lambda x: scores.distribution_matching(x, x, fake), x)
  np.testing.assert_allclose(got[0], 0)
  np.testing.assert_allclose(got[1], np.finfo(np.float32).max)
  got = gradient(lambda x: scores.distribution_matching(x, x, fake, floor=1e-5), x)
  np.testing.assert_allclose(got, [[0] * 3, [1e5] * 3], rtol=1e-5)


def test_dmd_drops_nan_entries():
  x, real, fake = draw(0), draw(1), draw(2).at[0, 0, 0, 0].set(jnp.nan)
  value, grad = jax.value_and_grad(lambda x: scores.distribution_matching(x, real, fake).sum())(x)
  assert jnp.isfinite(value) and jnp.isfinite(grad).all()
  assert grad[0, 0, 0, 0] == 0 and grad[0, 1].any()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_sid_masks_examples_with_nan(which):
  inputs = [draw(0), draw(1), draw(2)]
  whole = scores.sid(*inputs, alpha=1.2)
  inputs[which] = inputs[which].at[1, 0, 0, 0].set(jnp.nan)
  got = scores.sid(*inputs, alpha=1.2)
  assert not got[1].any()
  np.testing.assert_allclose(got[jnp.array([0, 2])], whole[jnp.array([0, 2])], rtol=1e-6)
  grads = jax.grad(lambda *a: scores.sid(*a, alpha=1.2).sum(), (0, 1, 2))(*inputs)
  for g in grads:
    assert jnp.isfinite(g).all() and not g[1].any() and g[0].any()


def test_sid_forms_and_gradients():
  x, real, fake = draw(0), draw(1), draw(2)
  n = scores.teacher_distance(x, real)
  np.testing.assert_allclose(
    scores.sid(x, real, fake), (real - fake) * (fake - x) / n, rtol=1e-4, atol=1e-5
  )
  grads = jax.grad(lambda *a: scores.sid(*a, alpha=0.5).sum(), (0, 1, 2))(x, real, fake)
  np.testing.assert_allclose(grads[0], -(real - fake) / n, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(grads[1], (real - x) / n, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(grads[2], (x - fake) / n, rtol=1e-4, atol=1e-5)


def test_sid_where_everything_agrees():
  x = draw(0)
  grads = jax.grad(lambda *a: scores.sid(*a).sum(), (0, 1, 2))(x, x, x)
  assert all(not g.any() for g in grads)


def test_dtypes():
  bf16 = [draw(k).astype(jnp.bfloat16) for k in range(3)]
  assert scores.distribution_matching(*bf16).dtype == jnp.float32
  assert scores.sid(*bf16).dtype == jnp.float32
  assert scores.noise_difference(*bf16, weight=2.0).dtype == jnp.float32
  with jax.enable_x64(True):
    wide = [draw(k).astype(jnp.float64) for k in range(3)]
    assert scores.sid(*wide).dtype == jnp.float64
    assert scores.distribution_matching(*bf16, weight=2.0).dtype == jnp.float32


def test_noise_difference_is_clipped_and_cleaned():
  x, teacher = jnp.zeros((1, 4)), jnp.array([[jnp.nan, 5.0, -5.0, 0.05]])
  got = gradient(
    lambda x: scores.noise_difference(x, teacher, jnp.zeros((1, 4)), weight=1.0, clip=0.1), x
  )
  np.testing.assert_allclose(got, [[0, 0.1, -0.1, 0.05]], rtol=1e-6)


def test_noise_weights():
  alpha, sigma = jnp.array([0.8]), jnp.array([0.6])
  for name, want in (("sds", 0.36), ("uniform", 1), ("fantasia3d", 0.288), ("ratio", 0.75)):
    np.testing.assert_allclose(scores.noise_weight(alpha, sigma, name=name), want, rtol=1e-6)
  with pytest.raises(ValueError, match="fantasia3d"):
    scores.noise_weight(alpha, sigma, name="sdss")


def test_asynchronous_time():
  t = jnp.array([0, 10, 20, 300, 900, 990, 999])
  got = scores.asynchronous_time(t)
  assert got.dtype == t.dtype
  np.testing.assert_array_equal(got, [1, 10, 20, 328, 988, 999, 999])


def test_perp_neg_leaves_the_positive_direction():
  u, c, negatives = draw(0), draw(1), jnp.stack([draw(2), draw(3)])
  weights = jnp.full((2, 3), -0.7)
  got = scores.perp_neg(u, c, negatives, weights, scale=7.5)
  axes = (1, 2, 3)
  positive = c - u
  along = jnp.sum((got - u) * positive, axis=axes) / jnp.sum(positive**2, axis=axes)
  np.testing.assert_allclose(along, 7.5, rtol=1e-4)
  same = scores.perp_neg(u, c, jnp.stack([c]), jnp.ones((1, 3)), scale=7.5)
  np.testing.assert_allclose(same, u + 7.5 * (c - u), rtol=1e-4, atol=1e-4)
  stuck = scores.perp_neg(c, c, negatives, weights, scale=7.5)  # no direction to keep
  assert jnp.isfinite(stuck).all()


def test_f_weights_by_name():
  with pytest.raises(ValueError, match="squared_hellinger"):
    fd.weight(jnp.ones(2), divergence="hellinger")
  r = jnp.array([0.0, 4.0])
  np.testing.assert_allclose(fd.weight(r, divergence="squared_hellinger"), [0, 0.5])
  plain = fd.weight(r, divergence="squared_hellinger", constants=False)
  np.testing.assert_allclose(plain, [0, 2])
  assert jnp.isfinite(fd.weight(r, divergence="neyman")).all()


def test_density_ratio_is_bounded_and_has_no_gradient():
  logits = jnp.array([[500.0, 400.0], [-500.0, -400.0], [1.0, -1.0]])
  np.testing.assert_allclose(fd.density_ratio(logits), [20, 0.1, 1])
  assert not jax.grad(lambda x: fd.density_ratio(x).sum())(logits).any()


def test_ratio_means_by_level():
  """Visited parts move, the ends included; the others stay."""
  ratio, t = jnp.array([2.0, 4.0, 6.0]), jnp.array([80.0, 100.0, 0.0])
  got, bins = fd.normalize_by_level(ratio, t, jnp.ones(4), decay=0.5)
  np.testing.assert_allclose(bins, [3.5, 1, 1, 2], rtol=1e-5)
  np.testing.assert_allclose(got, ratio / jnp.array([2.0, 2.0, 3.5]), rtol=1e-5)


def test_batch_normalize():
  np.testing.assert_allclose(fd.batch_normalize(jnp.array([1.0, 3.0])), [0.5, 1.5], rtol=1e-5)
  np.testing.assert_allclose(fd.batch_normalize(jnp.array([7.0])), 1, rtol=1e-5)
  assert not fd.batch_normalize(jnp.zeros(3)).any()


def test_mmd_of_a_set_with_itself():
  x = draw(0, (5, 3))
  np.testing.assert_allclose(mmd.rbf_mmd(x, x, bandwidths=[0.5, 2.0]), 0, atol=1e-6)
  np.testing.assert_allclose(mmd.linear_mmd(x, x + 1), 3, rtol=1e-5)
  grad = jax.grad(lambda y: mmd.rbf_mmd(x, y))(x)
  np.testing.assert_allclose(grad, 0, atol=1e-6)


def test_mmd_sees_far_sets_apart():
  x, y = jnp.zeros((2, 3)), jnp.full((3, 3), 1e4)
  np.testing.assert_allclose(mmd.rbf_mmd(x, y), 2, rtol=1e-6)
  np.testing.assert_allclose(mmd.rbf_mmd(x, y, unbiased=True), 2, rtol=1e-6)


def test_unbiased_mmd_leaves_out_the_diagonal_of_each_kernel():
  """Two rows at distance d: k(x, x') is one value, with one bandwidth or with two."""
  x, y = jnp.array([[0.0], [1.0]]), jnp.array([[0.0], [2.0]])
  k = lambda d: np.exp(-(d**2) / 2) + np.exp(-(d**2) / 8)  # noqa: E731
  want = k(1) + k(2) - 2 * (k(0) + k(2) + k(1) + k(1)) / 4
  got = mmd.rbf_mmd(x, y, bandwidths=[1.0, 2.0], unbiased=True)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_mmd_errors():
  with pytest.raises(ValueError, match="two rows"):
    mmd.rbf_mmd(jnp.zeros((1, 3)), jnp.zeros((4, 3)), unbiased=True)
  with pytest.raises(ValueError, match="size"):
    mmd.rbf_mmd(jnp.zeros((2, 3)), jnp.zeros((2, 1)))
