"""One network read on any schedule, guidance, flow maps, and weights put into other networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from distill_jax.diffusion import distributions, schedules
from distill_jax.diffusion import network as n

SCHEDULES = dict(
  edm=schedules.edm(),
  flow=schedules.flow(),
  trigflow=schedules.trigflow(0.5),
  vp=schedules.vp_linear(),
)
LABEL = {"label": jnp.array([0, 1, 2])}


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def config(**changes):
  given = n.default_config()
  given.update(dict(width=8, depth=2, num_classes=3, conditions=("label",), dtype="float64"))
  given.update(changes)
  return ConfigDict(dict(models=dict(student=given), data=dict(shape=(2,))))


def made(seed=0, **changes):
  network = n.make(config(**changes), "student")
  return network, jax.jit(network.init)(jax.random.key(seed))


def x_and_noise():
  return jax.random.normal(jax.random.key(1), (3, 2)), jnp.array([0.1, 0.9, 30.0])


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_reads_the_same_denoiser_and_its_predictions_agree(name):
  schedule, (network, params), (x, ratio) = SCHEDULES[name], made(), x_and_noise()
  want = n.denoise(network, params, x, ratio, LABEL)
  t = schedule.time(ratio)
  x_t = schedules.expand(schedule.alpha(t), x) * x
  x0 = n.predict(network, params, x_t, t, schedule, "x0", LABEL)
  np.testing.assert_allclose(x0, want, rtol=1e-6, atol=1e-8)
  for target in ("epsilon", "flow"):
    got = n.predict(network, params, x_t, t, schedule, target, LABEL)
    converted = schedules.convert(x0, x_t, t, schedule, "x0", target)
    np.testing.assert_allclose(got, converted, rtol=1e-6, atol=1e-8)


def test_the_parametrisation_is_edms():
  """x0 = skip x + out F' with F' = -F at the input x / sqrt(sigma^2 + sigma_data^2)."""
  (network, params), (x, sigma) = made(), x_and_noise()
  total = sigma**2 + 0.25
  f, _ = network.raw(
    params, x / jnp.sqrt(total)[:, None], jnp.arctan2(sigma, jnp.full(3, 0.5)), LABEL
  )
  want = (0.25 / total)[:, None] * x + (sigma * 0.5 / jnp.sqrt(total))[:, None] * -f
  np.testing.assert_allclose(n.denoise(network, params, x, sigma, LABEL), want, rtol=1e-9)


def test_there_are_values_at_both_ends():
  network, params = made()
  x = jax.random.normal(jax.random.key(1), (2, 2))
  at = jnp.array([0.0, 1.0])  # of rectified flow: pure image, pure noise
  for target in ("x0", "epsilon", "flow"):
    got = n.predict(network, params, x, at, SCHEDULES["flow"], target)
    assert np.isfinite(got).all()
  x0 = n.predict(network, params, x, at, SCHEDULES["flow"], "x0")
  np.testing.assert_allclose(x0[0], x[0], rtol=1e-12)


def test_what_a_network_is_not_asked():
  (network, params), (x, t) = made(), x_and_noise()
  with pytest.raises(ValueError, match="asked for x0, epsilon or flow, not for 'v'"):
    n.predict(network, params, x, t, SCHEDULES["edm"], "v")


def test_an_analytic_network_is_the_exact_denoiser():
  network = n.make(config(name="analytic", sigma_data=2.01**0.5, num_classes=5), "student")
  exact, (x, sigma) = distributions.named("mixture25"), x_and_noise()
  for condition in ({}, LABEL):
    got = n.denoise(network, {}, x, sigma, condition)
    np.testing.assert_allclose(got, exact.denoise(x, sigma, condition), rtol=1e-6, atol=1e-9)
  assert np.isfinite(n.denoise(network, {}, x, jnp.array([0.0, 1e-9, 1e9]), LABEL)).all()


def test_guidance():
  (network, params), (x, sigma) = made(), x_and_noise()
  denoise = jax.jit(lambda c: n.denoise(network, params, x, sigma, c))
  conditional, free = denoise(LABEL), denoise({})
  guide = lambda scale: n.guided_denoise(network, params, x, sigma, LABEL, scale)  # noqa: E731
  np.testing.assert_allclose(guide(1), conditional)
  np.testing.assert_allclose(guide(0.0), free, rtol=1e-9)
  np.testing.assert_allclose(guide(2.5), free + 2.5 * (conditional - free), rtol=1e-9)
  each = guide(jnp.array([0.0, 1.0, 2.5]))
  np.testing.assert_allclose(each[:2], jnp.stack([free[0], conditional[1]]), rtol=1e-9)


def test_the_null_condition_takes_labels_and_vectors_away_and_nothing_else():
  network, _ = made()
  given = dict(LABEL, vector=jnp.ones((3, 4)), second=jnp.ones(3))
  null = n.null_condition(network, given)
  np.testing.assert_array_equal(null["label"], jnp.full(3, 3))
  np.testing.assert_array_equal(null["vector"], jnp.zeros((3, 4)))
  np.testing.assert_array_equal(null["second"], jnp.ones(3))


def test_a_generator_denoises_pure_noise():
  (network, params), (z, _) = made(), x_and_noise()
  want = n.denoise(network, params, 20.0 * z, jnp.full(3, 20.0), LABEL)
  np.testing.assert_allclose(n.generate(network, params, z, 20.0, LABEL), want)


def test_at_birth_an_average_velocity_is_the_velocity_and_a_flow_map_to_0_denoises():
  network, params = made(conditions=("label", "second"))
  x, sigma = x_and_noise()
  t = sigma / (1 + sigma)
  z, flow = x / (1 + sigma)[:, None], SCHEDULES["flow"]
  velocity = n.predict(network, params, z, t, flow, "flow", LABEL)
  for r in (t, 0 * t):
    u = n.average_velocity(network, params, z, t, r, flow, LABEL)
    np.testing.assert_allclose(u, velocity, rtol=1e-9)
  image = n.flow_map(network, params, x, sigma, 0 * sigma, LABEL)
  np.testing.assert_allclose(image, n.denoise(network, params, x, sigma, LABEL), rtol=1e-8)
  np.testing.assert_allclose(n.flow_map(network, params, x, sigma, sigma, LABEL), x, rtol=1e-12)


def test_who_begins_as_whom():
  teacher, start = (made(seed)[1] for seed in (1, 2))
  both = dict(teacher=teacher, start=start)
  key = jax.random.key(0)
  same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)  # noqa: E731
  given = config()
  given.models.teacher = given.models.student
  same(n.params(given, "student", key, both), start)
  same(n.params(given, "student", key, dict(teacher=teacher)), teacher)
  same(n.params(given, "teacher", key, both), teacher)
  same(n.params(given, "student", key, {}), n.make(given, "student").init(key))
  given.models.student.width = 16  # a smaller or larger one starts from nothing
  fresh = n.make(given, "student").init(key)
  same(n.params(given, "student", key, both), fresh)


def test_a_graft_takes_the_dtype_of_the_new_and_keeps_what_the_old_has_not():
  fresh = dict(a=[jnp.zeros(2, jnp.float32)], b=jnp.zeros(3))
  grafted = n.graft(fresh, dict(a=[np.ones(2, np.float64)]))
  assert grafted["a"][0].dtype == jnp.float32
  np.testing.assert_array_equal(grafted["a"][0], jnp.ones(2))
  np.testing.assert_array_equal(grafted["b"], jnp.zeros(3))
