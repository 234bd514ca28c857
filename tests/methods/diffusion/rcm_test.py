"""rCM at its optimum: a consistent student, and a fake score that agrees with the teacher."""


def test_the_optimum_has_no_gradient(exact):
  state = dict(step=1000)
  fake = exact.network(exact.denoiser)
  right, wrong = (exact.network(f) for f in (exact.consistency, exact.denoiser))
  run = exact.play("rcm", state=state, student=right, fake=fake)
  other = exact.play("rcm", state=state, student=wrong, fake=fake)
  assert run.metrics["score_gap"] < 1e-10
  assert run.metrics["consistency"] < 1e-4 * other.metrics["consistency"]
  assert run.grad_norm < 1e-2 * other.grad_norm


def test_the_score_pushes_a_consistent_student_from_what_the_fake_overrates(exact):
  state = dict(step=1000, fake=dict(gain=1.0, shift=0.1))  # the fake sees samples 0.1 too high
  run = exact.play(
    "rcm",
    ("optim.lr=0.01",),
    state=state,
    student=exact.network(exact.consistency),
    fake=exact.network(exact.denoiser),
  )
  assert run.metrics["consistency"] < 1e-3 < run.metrics["score_gap"]
  assert run.state["student"]["shift"] < 0
