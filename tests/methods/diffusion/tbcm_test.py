"""TBCM at its optimum: sCM's, on points of the teacher's path and no others."""

import numpy as np


def test_the_exact_consistency_function_has_no_gradient(exact):
  state = dict(step=1000)
  run = exact.play("tbcm", state=state, student=exact.network(exact.consistency))
  other = exact.play("tbcm", state=state, student=exact.network(exact.denoiser))
  assert run.loss < 1e-4 * other.loss
  assert run.grad_norm < 1e-2 * other.grad_norm


def test_it_sees_no_data(exact):
  """The mean of the data is changed in the teacher alone."""
  shifted = exact.network(lambda *a: exact.denoiser(*a) + 100.0, params={})
  seen = exact.play("tbcm", teacher=shifted, student=exact.network(exact.consistency))
  assert np.isfinite(seen.loss)
