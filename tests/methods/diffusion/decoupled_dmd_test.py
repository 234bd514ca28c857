"""Decoupled DMD: what guidance adds, and where."""

import jax
import jax.numpy as jnp
import pytest

from distill_jax.methods.diffusion import decoupled_dmd


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_only_guidance_moves_a_generator_that_is_matched(exact, scale):
  """The teacher of a label is 0.1 above that of none; the fake score is the labelled one."""

  def labelled(params, x, sigma, condition):
    given = condition["label"] != 5
    return exact.denoiser(params, x, sigma, condition) + 0.1 * given[:, None]

  teacher = exact.network(labelled, params={})._replace(num_classes=5)
  student, fake = (exact.network(f)._replace(num_classes=5) for f in (exact.consistency, labelled))
  overrides = (f"method.guidance={scale}",)
  run = exact.play("decoupled_dmd", overrides, student=student, teacher=teacher, fake=fake)
  assert run.metrics["score_gap"] < 1e-10
  if scale == 1:
    assert run.grad_norm < 1e-4
  else:
    assert run.state["student"]["shift"] > 0


def test_augmentation_stays_below_the_generators_level():
  sigma = jnp.repeat(jnp.array([0.3, 4.0, 80.0]), 1000)
  drawn = decoupled_dmd.cleaner(jax.random.key(0), sigma, 0.01).reshape(3, 1000)
  assert jnp.all(drawn <= sigma.reshape(3, 1000)) and jnp.all(drawn > 0.0099)
  assert jnp.allclose(jnp.max(drawn[:2], axis=1), jnp.array([0.3, 4.0]), rtol=0.05)
