"""DMD at its optimum: the end of the teacher's ODE, and a fake score that agrees with it."""


def test_the_optimum_has_no_gradient(exact):
  overrides, fake = ("method.pairs=40",), exact.network(exact.denoiser)
  run, other = (
    exact.play("dmd", overrides, student=exact.network(f), fake=fake)
    for f in (exact.consistency, exact.denoiser)
  )
  assert run.metrics["score_gap"] < 1e-10
  assert run.metrics["regression"] < 1e-4 < other.metrics["regression"]
  assert run.grad_norm < 5e-2 * other.grad_norm


def test_the_regression_counts_a_quarter(exact):
  student, fake = (exact.network(exact.denoiser) for _ in range(2))
  run = exact.play("dmd", student=student, fake=fake)
  assert abs(run.loss - 0.25 * run.metrics["regression"]) < 1e-6
