"""Diff-Instruct and its kin where the optimum is known, and the scale of SNOOPI."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from distill_jax.methods.diffusion import diff_instruct

VARIANTS = ("diff_instruct", "swiftbrush", "snoopi")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fake_score_that_agrees_leaves_the_generator_alone(exact, variant):
  student, fake = exact.network(exact.consistency), exact.network(exact.denoiser)
  run = exact.play(f"diff_instruct:variant={variant}", student=student, fake=fake)
  assert run.metrics["score_gap"] < 1e-10 and run.grad_norm < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_generator_leaves_what_the_fake_overrates(exact, variant):
  student, fake = exact.network(exact.consistency), exact.network(exact.denoiser)
  state = dict(fake=dict(gain=1.0, shift=0.1))
  run = exact.play(f"diff_instruct:variant={variant}", state=state, student=student, fake=fake)
  assert run.state["student"]["shift"] < 0


def test_vsd_is_the_image_gradient_by_alpha_sigma():
  """w (eps_real - eps_fake) = sigma_vp^2 (fake - real) / sigma, sigma = sigma_vp / alpha_vp."""
  x, x_t, real, fake = jax.random.normal(jax.random.key(0), (4, 3, 2))
  sigma = jnp.array([0.1, 1.0, 7.0])
  gradient = jax.grad(
    lambda x: jnp.sum(diff_instruct.score_loss("sds", x, x_t, sigma, real, fake))
  )(x)
  np.testing.assert_allclose(
    gradient, (sigma / (1 + sigma**2))[:, None] * (fake - real), rtol=1e-5, atol=1e-6
  )


def test_scales_are_drawn_over_the_whole_range():
  low, high = 1.0, 3.0
  scale = diff_instruct.draw_scale(ConfigDict(dict(low=low, high=high)), jax.random.key(0), 1000)
  assert low <= scale.min() < 1.1 and 2.9 < scale.max() <= high
  assert diff_instruct.draw_scale(ConfigDict(dict(low=2.0, high=2.0)), jax.random.key(0), 9) == 2.0
