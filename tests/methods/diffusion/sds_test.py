"""Particles on a Gaussian."""

import jax.numpy as jnp
import pytest


@pytest.mark.parametrize("kind", ["vsd", "esd", "asd"])
def test_a_network_that_knows_the_distribution_leaves_particles_alone(exact, kind):
  run = exact.play(f"sds:kind={kind}", student=None, fake=exact.network(exact.denoiser))
  assert run.metrics["score_gap"] < 1e-10 and run.grad_norm < 1e-4


def test_noise_in_its_place_takes_them_to_the_mode(exact):
  overrides = ("optim.name=adam", "optim.lr=0.1", "noise.mean=1.5", "noise.std=0.1")
  run = exact.play("sds", overrides, steps=100, student=None, fake=None)
  x = run.state["student"]
  assert jnp.max(jnp.abs(jnp.mean(x, axis=0) - exact.mean)) < 0.15
  assert jnp.std(x) < 0.3 * exact.std


def test_the_adversary_learns_the_mixture_of_particles_and_teacher(exact):
  """Particles at 0, far from the teacher's mean: psi ends up between the two denoised images, the
  nearer to the teacher's the larger gamma."""

  def learnt(gamma):
    def constant(params, x, sigma, condition):
      return jnp.zeros_like(x)

    overrides = (
      f"method.gamma={gamma}",
      "fake_optim.lr=0.02",
      "fake_optim.b1=0.9",
      "optim.lr=0.0",
      "noise.mean=1.0",
      "noise.std=0.01",
    )
    state = dict(student=jnp.zeros((16, 2)))
    teacher = exact.network(lambda p, x, s, c: jnp.ones_like(x), params={})
    run = exact.play(
      "sds:kind=asd",
      overrides,
      state=state,
      steps=99,
      student=None,
      teacher=teacher,
      fake=exact.network(constant),
    )
    return run.state["fake"]["shift"]

  for gamma in (0.0, 1.0, 3.0):
    assert abs(learnt(gamma) - gamma / (1 + gamma)) < 0.05
