"""Segments of the teacher's DDIM, at whose optimum the student jumps to the end of its segment."""

import numpy as np
import pytest

from distill_jax.diffusion.schedules import karras_sigmas

LEVELS = np.append(0, np.asarray(karras_sigmas(32, 0.01, 20.0))[::-1])


@pytest.mark.parametrize("segments", [1, 4])
def test_the_discrete_flow_of_the_teacher_has_no_gradient(exact, segments):
  edges = np.arange(segments) * 32 // segments
  ends = [0, *(edges[edges < i].max() for i in range(1, 33))]
  right = exact.looked_up(LEVELS, [1, *exact.steps_of_ddim(LEVELS, ends)[1:]])
  run = exact.play(f"lcm:segments={segments}", student=exact.network(right))
  other = exact.play(f"lcm:segments={segments}", student=exact.network(exact.denoiser))
  assert run.loss < 1e-4 * other.loss
  assert run.grad_norm < 2e-2 * other.grad_norm


def test_the_sampler_steps_between_the_ends_of_the_segments(exact):
  run = exact.play("lcm:segments=4", student=exact.network(exact.denoiser))
  np.testing.assert_allclose(run.config.sampler.sigmas, LEVELS[[32, 24, 16, 8]], rtol=1e-5)


def test_the_student_is_told_the_scale_of_its_teacher(exact):
  def told(params, x, sigma, condition):
    seen.append(condition["guidance"].shape)
    return exact.denoiser(params, x, sigma, condition)

  seen = []
  exact.play("lcm", student=exact.network(told))
  assert seen and set(seen) == {(512,)}
