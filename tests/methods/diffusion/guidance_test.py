"""Guidance distillation with an exact guided student."""

import jax.numpy as jnp
import pytest

from distill_jax.diffusion import analytic


@pytest.mark.parametrize("scale", [None, 1.0])
def test_the_guided_denoiser_has_no_gradient(exact, scale):
  """`scale`: the student goes by another one than it is told."""
  mixture = analytic.grid_mixture()

  def conditional(params, x, sigma, condition):
    return mixture.denoise(x, sigma[:, 0], {"label": jnp.asarray(condition["label"])})

  def guided(params, x, sigma, condition):
    told = condition["guidance"][:, None] if scale is None else scale
    unlabelled = mixture.denoise(x, sigma[:, 0])
    return unlabelled + told * (conditional(params, x, sigma, condition) - unlabelled)

  student = exact.network(guided)._replace(num_classes=5)
  teacher = exact.network(conditional, params={})._replace(num_classes=5)
  run = exact.play("guidance", student=student, teacher=teacher)
  assert (run.loss < 1e-5) == (scale is None)
  assert (run.grad_norm < 1e-2) == (scale is None)
