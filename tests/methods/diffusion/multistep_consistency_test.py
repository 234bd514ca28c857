"""Segments of the cosine schedule, at whose optimum the student jumps to the end of its segment."""

import math

import numpy as np
import pytest


@pytest.mark.parametrize("segments", [1, 4])
def test_the_discrete_flow_of_the_teacher_has_no_gradient(exact, segments):
  steps = ("method.first=16", "method.last=16")
  low, high = math.atan(0.01), math.atan(20.0)
  levels = np.tan(low + np.arange(17) / 16 * (high - low))
  width = 16 // segments
  ends = [0, *((i - 1) // width * width for i in range(1, 17))]
  right = exact.network(exact.looked_up(levels, exact.steps_of_ddim(levels, ends)))
  spec = f"multistep_consistency:segments={segments}"
  run = exact.play(spec, steps, student=right)
  other = exact.play(spec, steps, student=exact.network(exact.denoiser))
  assert run.loss < 1e-6 * other.loss
  assert run.grad_norm < 1e-3 * other.grad_norm
  np.testing.assert_allclose(run.config.sampler.sigmas, levels[width::width][::-1], rtol=1e-5)
