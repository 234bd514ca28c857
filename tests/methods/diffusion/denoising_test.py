"""Denoising at its optimum, in both weightings."""

import pytest


@pytest.mark.parametrize("weight", ["edm", "flow"])
def test_the_exact_denoiser_has_the_least_loss(exact, weight):
  overrides, student = (f"method.weight={weight}",), exact.network(exact.denoiser)
  run = exact.play("denoising", overrides, student=student)
  for moved in (dict(gain=1.2, shift=0.0), dict(gain=1.0, shift=0.2)):
    other = exact.play("denoising", overrides, student=student, state=dict(student=moved))
    assert run.loss < other.loss
    assert run.grad_norm < 0.3 * other.grad_norm
