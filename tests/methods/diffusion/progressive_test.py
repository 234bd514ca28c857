"""Progressive distillation: one step for two, and who teaches when."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ONE = dict(gain=jnp.float32(1), shift=jnp.float32(0))


@pytest.mark.parametrize("schedule", ["karras", "cosine"])
def test_one_step_for_two_of_the_teacher_has_no_gradient(exact, schedule):
  """The teacher is the exact denoiser on a grid of 8 steps, the student is told 4."""
  u = np.arange(9) / 8
  low, high = 0.01, 20.0
  if schedule == "karras":
    levels = (low ** (1 / 7) + u * (high ** (1 / 7) - low ** (1 / 7))) ** 7
  else:
    levels = np.tan(np.arctan(low) * (1 - u) + np.arctan(high) * u)
  data = np.append(0, levels[1:])  # the last step goes to the data
  teacher = exact.steps_of_ddim(data, range(9))
  student = exact.steps_of_ddim(data, [max(i - 2, 0) if i % 2 == 0 else i for i in range(9)])

  def denoised(params, x, sigma, condition):
    i = jnp.argmin(jnp.abs(sigma - jnp.asarray(levels, jnp.float32)), axis=1)
    return exact.mean + params["table"][i][:, None] * (x - exact.mean)

  tables = {k: dict(ONE, table=jnp.asarray(v)) for k, v in dict(t=teacher, s=student).items()}
  network = exact.network(denoised, params=tables["t"])
  spec, stage = f"progressive:steps=4,schedule={schedule}", ("method.first=4", "method.last=4")
  # the start takes the student for its teacher, so it is set after the first step
  state = dict(student=tables["s"], teacher=tables["t"], step=1)
  run = exact.play(spec, stage, state, student=network)
  other = exact.play(spec, stage, dict(step=1), student=network)
  assert run.loss < 1e-6 * other.loss
  assert run.grad_norm < 1e-3 * other.grad_norm
  np.testing.assert_allclose(run.config.sampler.sigmas, data[2::2][::-1], rtol=1e-4)


def test_the_student_becomes_the_teacher_where_a_stage_ends(exact):
  stages = ("steps=6", "method.first=4", "method.last=1", "optim.lr=0.1")
  network = exact.network(exact.denoiser)
  runs = [exact.play("progressive", stages, steps=n, student=network) for n in range(1, 6)]
  assert [run.metrics["student_steps"] for run in runs] == [4, 4, 2, 2, 1]
  for before, after, ends in zip(runs, runs[1:], (False, True, False, True), strict=False):
    taught = before.state["student" if ends else "teacher"]
    jax.tree.map(np.testing.assert_array_equal, after.state["teacher"], taught)
    counts = {int(x) for x in jax.tree.leaves(after.state["opt"]) if x.dtype == jnp.int32}
    assert counts == {1 if ends else 2}  # of the optimiser, which starts anew


def test_stages_halve_whole_numbers(exact):
  with pytest.raises(ValueError, match="power of 2"):
    exact.play("progressive", ("method.first=6",), student=exact.network(exact.denoiser))
