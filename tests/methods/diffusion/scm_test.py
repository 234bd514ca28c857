"""sCM at its optimum, and what its gradient costs."""

import pytest


@pytest.mark.parametrize("step", [0, 2000])
def test_the_exact_consistency_function_has_no_gradient(exact, step):
  answers = exact.consistency, exact.denoiser
  if step == 0:  # without the derivative in time the optimum is the teacher itself
    answers = answers[::-1]
  run, other = (exact.play("scm", state=dict(step=step), student=exact.network(f)) for f in answers)
  assert run.loss < 1e-4 * other.loss
  assert run.grad_norm < 1e-2 * other.grad_norm


def test_the_gradient_costs_at_most_five_forward_passes(forwards):
  assert forwards("scm") < 5
