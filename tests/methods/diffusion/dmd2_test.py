"""DMD2 and f-distill where the optimum is known."""

import pytest

PLAIN = ("method.adversarial=0.0",)


@pytest.mark.parametrize("words", ["steps=4", "divergence=js"])
def test_a_fake_score_that_agrees_leaves_the_generator_alone(exact, words):
  student, fake = exact.network(exact.consistency), exact.network(exact.denoiser)
  run = exact.play(f"dmd2:{words}", PLAIN, student=student, fake=fake)
  assert run.metrics["score_gap"] < 1e-10 and run.grad_norm < 1e-4
  state = dict(fake=dict(run.state["fake"], score=dict(gain=1.0, shift=0.1)))
  opt = exact.play(f"dmd2:{words}", PLAIN, state=state, student=student, fake=fake)
  assert opt.state["student"]["shift"] < 0
