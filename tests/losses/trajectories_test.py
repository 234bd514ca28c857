"""Targets and weights of progressive, guidance, BOOT, LCM and phased distillation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import consistency as c
from distill_jax.losses import trajectories as tr


def arrays(count, batch=2):
  return jax.random.normal(jax.random.key(0), (count, batch, 2, 2, 3))


def test_vp_levels_at_the_extremes():
  alpha, sigma = tr.vp(jnp.array([-60.0, -20.0, 0.0, 20.0, 60.0]))
  np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)
  assert jnp.all(alpha > 0) and jnp.all(sigma > 0)


def test_ddim_with_the_true_data_keeps_the_noise():
  x0, eps = arrays(2)
  now, then = tr.vp(jnp.array([-3.0, 1.0])), tr.vp(jnp.array([2.0, 9.0]))
  got = tr.ddim_step(tr.noised(x0, eps, now), x0, now, then)
  np.testing.assert_allclose(got, tr.noised(x0, eps, then), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight", ["constant", "snr", "truncated_snr", "snr_plus_one"])
@pytest.mark.parametrize("batch", [1, 3])
def test_weights_are_errors_of_other_predictions(weight, batch):
  with jax.enable_x64(True):
    student, target, z = (a.astype(jnp.float64) for a in arrays(3, batch))
    log_snr = jnp.linspace(-4.0, 5.0, batch)
    alpha, sigma = (c.expand(a, z) for a in tr.vp(log_snr))
    eps = [(z - alpha * x) / sigma for x in (student, target)]
    v = [alpha * e - sigma * x for e, x in zip(eps, (student, target), strict=True)]
    of_x, of_eps = c.mean_squared(student, target), c.mean_squared(*eps)
    want = {
      "constant": of_x,
      "snr": of_eps,
      "truncated_snr": jnp.maximum(of_x, of_eps),
      "snr_plus_one": c.mean_squared(*v),
    }
    got = tr.progressive(student, target, log_snr, weight=weight)
    np.testing.assert_allclose(got, want[weight], rtol=1e-10)


def test_an_unknown_weight_is_named():
  with pytest.raises(ValueError, match=r"'edm'.*truncated_snr"):
    tr.snr_weight(jnp.zeros(1), "edm")


def test_guidance():
  student, cond, uncond = arrays(3)
  scale, log_snr = jnp.array([1.0, 5.0]), jnp.array([-2.0, 3.0])
  target = tr.guided(cond, uncond, scale)
  np.testing.assert_allclose(target[0], cond[0], atol=1e-6)
  np.testing.assert_allclose(target[1], 5 * cond[1] - 4 * uncond[1], rtol=1e-4, atol=1e-5)
  got = tr.guidance(student, cond, uncond, scale, log_snr)
  np.testing.assert_allclose(
    got, jnp.array([1, np.exp(3.0)]) * c.mean_squared(student, target), 1e-5
  )
  grads = jax.grad(lambda *a: tr.guidance(*a, scale, log_snr).sum(), argnums=(0, 1, 2))(
    student, cond, uncond
  )
  assert [bool(jnp.any(g != 0)) for g in grads] == [True, False, False]


def test_targets_pass_no_gradient():
  x, y = arrays(2)
  a, b = jnp.array([-2.0, 1.0]), jnp.array([1.0, 2.0])
  t, r = jnp.array([3.0, 2.0]), jnp.array([1.0, 0.5])
  edge = jnp.array([True, False])
  for target in (
    lambda x: tr.inverse_ddim(x, x + y, tr.vp(a), tr.vp(b)),
    lambda x: tr.euler_denoised(x, x + y, t, r),
    lambda x: tr.boot_target(x, x + y, a, b),
    lambda x: tr.segment_target(x, x + y, edge),
  ):
    np.testing.assert_array_equal(jax.grad(lambda x, f=target: f(x).sum())(x), 0)


def test_boot_ends_between_signal_and_denoised_image():
  y, denoised = arrays(2)
  now = jnp.array([-3.0, 0.0])
  np.testing.assert_allclose(tr.boot_target(y, denoised, now, now), y, atol=1e-6)
  np.testing.assert_allclose(tr.boot_target(y, denoised, now, now + 60), denoised, atol=1e-6)


def test_segments():
  previous, jumped = arrays(2)
  got = tr.segment_target(previous, jumped, jnp.array([True, False]))
  np.testing.assert_array_equal(got, jnp.stack([previous[0], jumped[1]]))


def test_lcm_scalings_are_a_boundary_condition():
  c_skip, c_out = tr.lcm_scalings(jnp.array([0, 19, 999]))
  assert c_skip[0] == 1 and c_out[0] == 0
  np.testing.assert_allclose(c_skip[1:], 0, atol=1e-4)
  np.testing.assert_allclose(c_out[1:], 1, atol=1e-4)


@pytest.mark.parametrize("size", [4, 7, 16])
def test_guidance_embeddings(size):
  got = tr.guidance_embedding(jnp.array([0.0, 7.5]), size)
  half = size // 2
  assert got.shape == (2, size) and got.dtype == jnp.float32
  np.testing.assert_array_equal(got[0, :half], 0)
  np.testing.assert_array_equal(got[0, half : 2 * half], 1)
  np.testing.assert_allclose(got[1, 0], np.sin(7500.0), atol=1e-3)
  assert size % 2 == 0 or jnp.all(got[:, -1] == 0)


def test_ode_regression_trains_the_student_alone():
  x, y = arrays(2)
  np.testing.assert_allclose(tr.ode_regression(x, y), c.mean_squared(x, y) / 2, rtol=1e-6)
  np.testing.assert_array_equal(jax.grad(lambda y: tr.ode_regression(x, y).sum())(y), 0)
