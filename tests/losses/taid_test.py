"""TAID's target and schedule, and the learned temperature."""

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.losses import taid
from distill_jax.losses.divergences import forward_kl


def test_the_target_moves_from_student_to_teacher_without_gradient():
  s, t = jax.random.normal(jax.random.key(0), (2, 2, 5)).at[:, :, 4].set(-jnp.inf)
  np.testing.assert_allclose(forward_kl(s, taid.taid_target(s, t, 0.0)), 0, atol=1e-6)
  np.testing.assert_allclose(forward_kl(t, taid.taid_target(s, t, 1.0)), 0, atol=1e-6)
  grad = jax.grad(lambda s: jnp.where(jnp.isfinite(s), taid.taid_target(s, t, 0.5), 0).sum())(s)
  assert (grad == 0).all()


def test_the_schedule_never_falls_below_the_line_and_ends_at_the_end():
  state = taid.taid_init(start=0.2)

  @jax.jit
  def update(state, loss, progress):
    return taid.taid_update(state, loss, progress, start=0.2, end=0.9, rate=0.05)

  ts = []
  for step in range(12):
    state = update(state, jnp.float32(5.0 / (step + 1)), step / 10)
    ts.append(float(state.t))
  assert ts[0] == np.float32(0.2)
  assert all(t >= min(0.2 + 0.07 * step, 0.9) - 1e-6 for step, t in enumerate(ts))
  assert np.all(np.diff(ts) >= 0) and ts[-1] == np.float32(0.9)


def test_the_learned_temperature_climbs():
  grad = jax.grad(lambda x: taid.learned_temperature(x, 0.5))(0.0)
  np.testing.assert_allclose(grad, -0.5 * 20 / 4)
  np.testing.assert_allclose(taid.learned_temperature(jnp.float32(0), 0.5), 11.0)
  np.testing.assert_allclose(
    taid.cosine_strength(jnp.array([0, 0.5, 1, 2.0])), [1, 0.5, 0, 0], atol=1e-6
  )
