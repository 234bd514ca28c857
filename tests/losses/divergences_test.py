"""Identities, masks, awkward values and finite differences of the divergences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from distill_jax.losses import divergences as d
from distill_jax.losses.log_probs import entropy, token_log_probs

TRUE_DIVERGENCES = {
  "forward_kl": d.forward_kl,
  "reverse_kl": d.reverse_kl,
  "js_0.5": d.generalized_js,
  "js_0.1": partial(d.generalized_js, beta=0.1),
  "js_0": partial(d.generalized_js, beta=0),
  "js_1": partial(d.generalized_js, beta=1),
  "skew_forward": d.skew_forward_kl,
  "skew_forward_0": partial(d.skew_forward_kl, skew=0),
  "skew_reverse": d.skew_reverse_kl,
  "skew_reverse_array": partial(d.skew_reverse_kl, skew=jnp.array([0.2, 0.5, 0.9])),
  "total_variation": d.total_variation,
}
BOUNDED = ["js_0.5", "js_0.1", "skew_forward", "skew_reverse", "total_variation"]
each = pytest.mark.parametrize("name", TRUE_DIVERGENCES)


def logits(shape=(3, 7), seed=0, scale=2.0):
  return scale * jax.random.normal(jax.random.key(seed), (2, *shape))


def value_and_grad(name, s, t, **kw):
  f = TRUE_DIVERGENCES[name]
  return f(s, t, **kw), jax.grad(lambda s: jnp.sum(f(s, t, **kw)))(s)


@each
def test_zero_at_equality_positive_elsewhere_and_shift_invariant(name):
  s, t = logits()
  f = TRUE_DIVERGENCES[name]
  np.testing.assert_allclose(f(s, s), 0.0, atol=1e-6)
  assert (f(s, t) > 1e-3).all()
  np.testing.assert_allclose(f(s + 30.0, t - 20.0), f(s, t), rtol=2e-5)


@each
def test_masked_equals_sliced_whatever_the_masked_rows_hold(name):
  s, t = logits()
  where = jnp.array([True, True, False])
  bad = s.at[2].set(jnp.nan), t.at[2].set(jnp.inf)
  value, grad = value_and_grad(name, *bad, where=where)
  full, full_grad = value_and_grad(name, s, t)
  np.testing.assert_allclose(value, full.at[2].set(0.0), rtol=1e-6)
  np.testing.assert_allclose(grad, full_grad.at[2].set(0.0), atol=1e-7)


@each
def test_ids_masked_on_both_sides_equal_a_smaller_vocabulary(name):
  s, t = logits()
  value, grad = value_and_grad(name, s, t)
  pad = [(0, 0), (0, 2)]
  padded = [jnp.pad(x, pad, constant_values=-jnp.inf) for x in (s, t)]
  padded_value, padded_grad = value_and_grad(name, *padded)
  np.testing.assert_allclose(padded_value, value, rtol=1e-6)
  np.testing.assert_allclose(padded_grad, jnp.pad(grad, pad), atol=1e-7)


@each
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_a_row_of_nothing_but_inf_is_masked(name, side):
  s, t = logits()
  if side != "teacher":
    s = s.at[1].set(-jnp.inf)
  if side != "student":
    t = t.at[1].set(-jnp.inf)
  value, grad = value_and_grad(name, s, t)
  assert value[1] == 0 and (grad[1] == 0).all()
  assert jnp.isfinite(value).all() and jnp.isfinite(grad).all()


@each
@pytest.mark.parametrize("vocabulary", [1, 2, 7])
def test_peaked_rows_are_finite(name, vocabulary):
  s, t = jnp.full((2, 3, vocabulary), -50.0)
  s, t = s.at[:, 0].set(50.0), t.at[:, -1].set(50.0)
  value, grad = value_and_grad(name, s, t)
  assert jnp.isfinite(value).all() and jnp.isfinite(grad).all()
  value, grad = value_and_grad(name, 100 * s, 100 * t)  # e^-10000 is 0 in any format
  assert jnp.isfinite(value).all() and jnp.isfinite(grad).all()


@each
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_an_impossible_id_on_one_side(name, side):
  s, t = logits((3, 7))
  if side == "student":
    s = s.at[:, 0].set(-jnp.inf)
  else:
    t = t.at[:, 0].set(-jnp.inf)
  value, grad = value_and_grad(name, s, t)
  forward, reverse = {"forward_kl", "js_0", "skew_forward_0"}, {"reverse_kl", "js_1"}
  infinite = name in (forward if side == "student" else reverse)
  assert jnp.isfinite(grad).all() and not jnp.isnan(value).any()
  assert (jnp.isinf(value) == infinite).all()


@each
def test_gradients_by_finite_differences(name):
  with jax.enable_x64(True):
    s, t = (x.astype(jnp.float64) for x in logits())
    check_grads(lambda s: TRUE_DIVERGENCES[name](s, t, temperature=1.5), (s,), 1, ("fwd", "rev"))


@each
def test_bfloat16_in_float32_out_and_no_gradient_to_the_teacher(name):
  s, t = logits().astype(jnp.bfloat16)
  f = TRUE_DIVERGENCES[name]
  value = f(s, t)
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, f(s.astype(jnp.float32), t.astype(jnp.float32)))
  assert (jax.grad(lambda t: f(s, t).sum())(t) == 0).all()


def test_temperature_divides_both_logits():
  s, t = logits()
  np.testing.assert_allclose(d.forward_kl(s, t, temperature=2.0), d.forward_kl(s / 2, t / 2))
  per_row = d.forward_kl(s, t, temperature=jnp.array([1.0, 2.0, 3.0]))
  np.testing.assert_allclose(per_row[1], d.forward_kl(s, t, temperature=2.0)[1])


@pytest.mark.parametrize("name", BOUNDED)
def test_bounds(name):
  s, t = logits(scale=100.0)
  bound = {"total_variation": 1.0, "js_0.5": np.log(2), "js_0.1": 0.3251}.get(name, -np.log(0.1))
  assert (TRUE_DIVERGENCES[name](s, t) <= bound + 1e-5).all()


def test_closed_forms():
  p, q = jnp.array([0.5, 0.5]), jnp.array([0.9, 0.1])
  s, t = jnp.log(q), jnp.log(p)
  np.testing.assert_allclose(d.forward_kl(s, t), 0.5 * np.log(0.25 / 0.09), rtol=1e-6)
  np.testing.assert_allclose(d.total_variation(s, t), 0.4, rtol=1e-6)
  m = 0.1 * p + 0.9 * q  # GKD's beta weighs the teacher, in the mixture and in the sum
  want = 0.1 * jnp.sum(p * jnp.log(p / m)) + 0.9 * jnp.sum(q * jnp.log(q / m))
  np.testing.assert_allclose(d.generalized_js(s, t, beta=0.1), want, rtol=1e-5)
  np.testing.assert_allclose(d.soft_cross_entropy(s, t), d.forward_kl(s, t) + entropy(t), rtol=1e-6)


def test_the_stopped_mixture_changes_the_gradient_alone():
  s, t = logits()
  value, grad = value_and_grad("skew_reverse", s, t)
  stopped, stopped_grad = value_and_grad("skew_reverse", s, t, stop_mixture=True)
  np.testing.assert_array_equal(value, stopped)
  assert not np.allclose(grad, stopped_grad, rtol=1e-3)


def test_token_log_probs_ignores_masked_targets():
  s, _ = logits()
  picked = token_log_probs(s, jnp.array([3, -100, 0]), where=jnp.array([True, False, True]))
  np.testing.assert_allclose(picked[0], jax.nn.log_softmax(s)[0, 3], rtol=1e-6)
  assert picked[1] == 0


@pytest.mark.parametrize(
  "call",
  [
    lambda s, t: d.forward_kl(s, t[:, :3]),
    lambda s, t: d.generalized_js(s, t, beta=1.1),
    lambda s, t: d.skew_forward_kl(s, t, skew=1),
    lambda s, t: d.skew_reverse_kl(s, t, skew=-0.1),
  ],
)
def test_errors(call):
  with pytest.raises(ValueError, match=r"differ in shape|must be in"):
    call(*logits())
