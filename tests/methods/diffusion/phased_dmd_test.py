"""Phased DMD with exact networks."""


def test_the_optimum_has_no_gradient(exact):
  """Of the generator exactly, of the fake score in the mean: its targets are unbiased though it
  never sees a clean image of the first phase."""
  student = exact.network(exact.consistency)
  fake = exact.network(exact.denoiser)
  run = exact.play("phased_dmd", student=student, fake=fake)
  assert run.metrics["score_gap"] < 1e-10 and run.grad_norm < 1e-4
  shifted = dict(fake=dict(gain=1.0, shift=0.3))
  other = exact.play("phased_dmd", student=student, fake=fake, state=shifted)
  assert run.metrics["fake_loss"] < other.metrics["fake_loss"]
  assert run.metrics["fake_grad_norm"] < 0.2 * other.metrics["fake_grad_norm"]
  assert other.state["student"]["shift"] < 0 and other.state["fake"]["shift"] < 0.3
