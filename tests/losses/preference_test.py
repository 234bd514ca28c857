"""Preference losses: values at known points, directions, and extreme log-ratios."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import preference as pref
from distill_jax.losses.aligndistil import adaptive_weight, extrapolate
from distill_jax.losses.divergences import total_variation

PAIRED = {
  "dpo": pref.dpo,
  "robust": pref.robust_dpo,
  "hinge": pref.hinge,
  "ipo": pref.ipo,
  "exo": pref.exo,
  "nca": pref.nca,
  "sppo": pref.sppo,
  "apo_zero": pref.apo_zero,
  "redi": lambda c, r, beta: pref.redi(c, r),
}


@pytest.mark.parametrize("name", PAIRED)
def test_descent_widens_the_gap(name):
  c, r = jnp.zeros(1), jnp.zeros(1)
  down_c, down_r = jax.grad(lambda c, r: PAIRED[name](c, r, beta=0.5).sum(), (0, 1))(c, r)
  assert (down_c - down_r < 0).all()


@pytest.mark.parametrize("name", [*PAIRED, "apo_down"])
@pytest.mark.parametrize("size", [0.0, 1e-9, 500.0])
def test_extreme_log_ratios_are_finite(name, size):
  f = (PAIRED | {"apo_down": pref.apo_down})[name]
  for c, r in ((size, -size), (-size, size)):
    value, grad = jax.value_and_grad(lambda c, r=r, f=f: f(c, r, beta=0.5))(jnp.float32(c))
    assert jnp.isfinite(value) and jnp.isfinite(grad)


def test_known_values():
  np.testing.assert_allclose(pref.dpo(jnp.float32(0), 0.0), np.log(2), rtol=1e-6)
  np.testing.assert_allclose(
    pref.dpo(jnp.float32(3), 1.0, beta=0.5, margin=1.0), np.log(2), rtol=1e-6
  )
  assert pref.ipo(jnp.float32(5), 0.0, beta=0.1) == 0
  np.testing.assert_allclose(pref.robust_dpo(jnp.float32(2), 0.0, flip=0.0), pref.dpo(2.0, 0.0))
  np.testing.assert_allclose(pref.js_score(jnp.float32(0)), 0, atol=1e-7)


def test_f_dpo_scores_pass_through_dpo():
  x = jnp.array([-1.0, 0.5, 2.0])
  np.testing.assert_allclose(pref.alpha_score(x, alpha=1 + 1e-4), x, rtol=1e-3)
  np.testing.assert_allclose(pref.alpha_score(x, alpha=0), 1 - jnp.exp(-x), rtol=1e-6)
  np.testing.assert_array_equal(pref.alpha_score(x, alpha=1), x)
  assert jnp.isfinite(pref.alpha_score(jnp.float32(-1e4), alpha=0.5))
  np.testing.assert_allclose(pref.alpha_reward(x - 3, alpha=1e-4), x - 3, rtol=1e-3)


def test_kto_has_no_gradient_through_its_reference_point():
  x, good = jnp.array([1.0, -1.0]), jnp.array([True, False])
  assert jax.grad(lambda z: pref.kto(x, good, z).sum())(0.5) == 0
  np.testing.assert_allclose(pref.kto(x, good, -3.0), pref.kto(x, good, 0.0))  # z >= 0
  np.testing.assert_allclose(pref.kto(x, good, 0.0), pref.apo_zero_unpaired(x, good), rtol=1e-6)


def test_the_running_mean_is_the_mean_of_everything():
  state = pref.RunningMean(jnp.float32(0), jnp.float32(0))
  for part in (jnp.array([1.0, 2.0]), jnp.array([6.0])):
    state = pref.update_mean(state, part)
  assert state.mean == 3 and state.seen == 3


def test_odds_ratio():
  p, q = 0.8, 0.3
  got = pref.log_odds_ratio(jnp.log(p), jnp.log(q))
  np.testing.assert_allclose(got, np.log(p / (1 - p) / (q / (1 - q))), rtol=1e-5)


def test_aot_compares_sorted_batches():
  gap = pref.sorted_gap(jnp.array([3.0, 1.0]), jnp.array([0.0, 2.0]))
  np.testing.assert_array_equal(gap, [1, 1])


def test_teacher_student_pairs():
  s, t = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 2.0]])
  s_c, s_r, t_c, t_r = pref.teacher_student_pair(s, t)
  assert s_c < s_r and t_c > t_r
  np.testing.assert_allclose([s_r - s_c, t_c - t_r], 2, rtol=1e-6)
  assert pref.dpo_positive(jnp.float32(-2), jnp.float32(-1), weight=50.0) == 50
  assert pref.dpo_positive(jnp.float32(-1), jnp.float32(-2)) == 0


def test_the_adaptive_skew_stays_in_its_bounds():
  skew = partial(pref.adaptive_skew, gap=0.05)
  assert skew(jnp.log(0.1), jnp.log(0.9)) == np.float32(0.1)
  assert skew(jnp.log(0.5), jnp.log(0.52)) == np.float32(0.01)


def test_extrapolation():
  base, tuned, reference = jax.random.normal(jax.random.key(0), (3, 2, 4)).at[..., 3].set(-jnp.inf)
  np.testing.assert_allclose(extrapolate(reference, tuned, reference, 1.0), tuned, rtol=1e-5)
  weight = adaptive_weight(tuned, reference, strength=2.0)
  np.testing.assert_allclose(weight, 4 * total_variation(tuned, reference) + 1e-3, rtol=1e-6)
  assert not jnp.isnan(extrapolate(base, tuned, reference, weight)).any()
