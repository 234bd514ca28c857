"""SiD where the optimum is known."""


def test_a_fake_score_that_agrees_leaves_the_generator_alone(exact):
  student, fake = exact.network(exact.consistency), exact.network(exact.denoiser)
  run = exact.play("sid", student=student, fake=fake)
  assert run.metrics["score_gap"] < 1e-10 and run.grad_norm < 1e-4


def test_the_generator_leaves_what_the_fake_overrates(exact):
  """A fake score 0.1 too high at every level: at alpha = 1/2 the gradient is that of a distance."""
  student, fake = exact.network(exact.consistency), exact.network(exact.denoiser)
  run = exact.play("sid", student=student, fake=fake)
  head = run.state["fake"]["head"]
  state = dict(fake=dict(score=dict(gain=1.0, shift=0.1), head=head))
  run = exact.play("sid", state=state, student=student, fake=fake)
  assert run.state["student"]["shift"] < 0
