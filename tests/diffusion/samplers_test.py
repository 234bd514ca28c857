"""What each sampler does, in steps that can be followed by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion import analytic, ddpm, preconditioning, samplers, schedules, steps

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def mixture():
  return analytic.GaussianMixture(
    jnp.array([1.0, 2.0]),
    jnp.array([[-1.0, 0.0], [2.0, 1.0]]),
    jnp.array([0.3, 0.5]),
    jnp.arange(2),
  )


def noise(n=6, seed=1):
  return 80.0 * jax.random.normal(jax.random.key(seed), (n, 2))


def counted(denoise):
  """The denoiser, and a list with an entry for each time that it ran."""
  calls = []

  def call(x, sigma):
    jax.debug.callback(lambda: calls.append(1))
    assert sigma.shape == x.shape[:1] and sigma.dtype == x.dtype
    return denoise(x, sigma)

  return call, calls


DETERMINISTIC = {
  "euler": (samplers.euler, lambda n: n),
  "heun": (samplers.heun, lambda n: 2 * n - 1),
  "dpm_solver_pp_2m": (samplers.dpm_solver_pp_2m, lambda n: n),
}
STOCHASTIC = {
  "ddim": (samplers.ddim, lambda n: n),
  "ancestral": (samplers.ancestral, lambda n: n),
  "few_step": (samplers.few_step, lambda n: n),
  "stochastic_heun": (
    lambda *args: samplers.stochastic_heun(*args, steps.Churn(10.0)),
    lambda n: 2 * n - 1,
  ),
}


@pytest.mark.parametrize("name", DETERMINISTIC | STOCHASTIC)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_evaluations_shapes_and_one_step(name, n):
  sampler, cost = (DETERMINISTIC | STOCHASTIC)[name]
  exact = jax.tree.map(lambda a: a.astype("float32"), mixture()).denoise
  denoise, calls = counted(exact)
  key = (KEY,) if name in STOCHASTIC else ()
  x, sigmas = noise(3).astype("float32"), schedules.karras_sigmas(n).astype("float32")
  out = jax.jit(lambda x, s: sampler(denoise, x, s, *key))(x, sigmas)
  jax.effects_barrier()
  assert len(calls) == cost(n) and out.shape == x.shape and out.dtype == x.dtype
  if n == 1 and name != "stochastic_heun":
    one = samplers.one_step(exact, x[:1] / 80)
    np.testing.assert_allclose(out[:1], one, rtol=1e-5)


def test_of_images():
  denoise = analytic.empirical(jax.random.normal(KEY, (5, 2, 2, 3))).denoise
  x = 80 * jax.random.normal(KEY, (2, 2, 2, 3))
  sigmas = schedules.karras_sigmas(4)
  for name in ("dpm_solver_pp_2m", "ancestral", "stochastic_heun"):
    key = (KEY,) if name in STOCHASTIC else ()
    out = (DETERMINISTIC | STOCHASTIC)[name][0](denoise, x, sigmas, *key)
    assert out.shape == x.shape and jnp.isfinite(out).all()


def test_euler_is_ddim_without_eta_and_a_flow_map_of_denoisers():
  denoise, x, sigmas = mixture().denoise, noise(), schedules.karras_sigmas(7)
  want = samplers.euler(denoise, x, sigmas)
  np.testing.assert_allclose(samplers.ddim(denoise, x, sigmas, KEY), want, rtol=1e-9)
  jumps = samplers.flow_map(steps.ddim_map(denoise), x, sigmas, KEY)
  np.testing.assert_allclose(jumps, want, rtol=1e-9)
  # DDIM as its paper writes it, on a variance-preserving schedule
  y = x / jnp.sqrt(1 + sigmas[0] ** 2)
  grid = jnp.append(sigmas, 0.0)
  for s, t in itertools.pairwise(grid):
    alpha, alpha_next = 1 / jnp.sqrt(1 + s**2), 1 / jnp.sqrt(1 + t**2)
    x0 = denoise(y / alpha, s)
    eps = (y - alpha * x0) / jnp.sqrt(1 - alpha**2)
    y = alpha_next * x0 + jnp.sqrt(1 - alpha_next**2) * eps
  np.testing.assert_allclose(y, want, rtol=1e-7)


def test_heun_is_runge_kutta_in_sigma_and_without_churn_stochastic_heun():
  denoise, x, sigmas = mixture().denoise, noise(), schedules.karras_sigmas(7)
  want = samplers.heun(denoise, x, sigmas)
  grid = jnp.append(sigmas, 0.0)
  velocity = steps.sigma_velocity(denoise)
  np.testing.assert_allclose(steps.runge_kutta_2(velocity, x, grid), want, rtol=1e-9)
  quiet = samplers.stochastic_heun(denoise, x, sigmas, KEY, steps.Churn(0.0))
  np.testing.assert_allclose(quiet, want, rtol=1e-9)
  outside = steps.Churn(10.0, low=100.0)
  np.testing.assert_allclose(
    samplers.stochastic_heun(denoise, x, sigmas, KEY, outside), want, rtol=1e-9
  )
  loud = samplers.stochastic_heun(denoise, x, sigmas, KEY, steps.Churn(10.0))
  assert jnp.abs(loud - want).max() > 1e-3


def test_churn_adds_variance_up_to_its_level():
  z = jax.random.normal(KEY, (100_000, 1))
  x, level = steps.churned(2 * z, jnp.float64(2.0), z[::-1], steps.Churn(4.0), 16)
  np.testing.assert_allclose(level, 2.5)
  np.testing.assert_allclose(jnp.std(x), 2.5, rtol=0.01)
  most = steps.churned(x, jnp.float64(2.0), z, steps.Churn(100.0), 16)[1]
  np.testing.assert_allclose(most, 2 * 2**0.5)


def test_few_step_adds_noise_up_to_each_level():
  """Of a network that only reports the level it is given."""
  levels = []

  def denoise(x, sigma):
    jax.debug.callback(lambda x, s: levels.append((float(s[0]), float(x.std()))), x, sigma)
    return jnp.zeros_like(x)

  x = 80 * jax.random.normal(KEY, (20_000, 2))
  samplers.few_step(denoise, x, jnp.array([80.0, 5.0, 0.5]), KEY, sigma_min=0.3)
  jax.effects_barrier()
  want = [(80, 80), (5, (25 - 0.09) ** 0.5), (0.5, 0.4)]
  np.testing.assert_allclose(sorted(levels, reverse=True), want, rtol=0.02)


def test_gamma_one_is_few_step_and_zero_follows_the_ode():
  m, x, sigmas = mixture(), noise(), jnp.array([80.0, 3.0, 0.5])

  def exact(x, sigma, sigma_to):
    return m.flow_map(x, sigma, sigma_to)

  follows = samplers.flow_map(exact, x, sigmas, KEY)
  np.testing.assert_allclose(follows, m.flow_map(x, 80.0, 0.0), atol=1e-4)
  renoised = samplers.flow_map(exact, x, sigmas, KEY, gamma=1.0)
  consistency = samplers.few_step(lambda x, s: exact(x, s, jnp.zeros_like(s)), x, sigmas, KEY)
  np.testing.assert_allclose(renoised, consistency, rtol=1e-6)


def test_keys_decide_and_steps_differ():
  denoise, x, sigmas = mixture().denoise, noise(), schedules.karras_sigmas(4)
  for name in STOCHASTIC.keys() - {"ddim"}:
    sampler = STOCHASTIC[name][0]
    a, b = (sampler(denoise, x, sigmas, key) for key in (KEY, KEY))
    c = sampler(denoise, x, sigmas, jax.random.key(9))
    assert (a == b).all() and (a != c).any()


def test_a_path_holds_what_integrate_passes():
  denoise, x = mixture().denoise, noise()
  grid = jnp.append(schedules.karras_sigmas(6), 0.0)

  def step(x, t, t_next):
    return steps.euler_step(steps.sigma_velocity(denoise), x, t, t_next)

  states = steps.integrate(step, x, grid, path=True)
  assert states.shape == (7, 6, 2) and (states[0] == x).all()
  for k in (1, 3, 6):
    np.testing.assert_allclose(states[k], steps.integrate(step, x, grid[: k + 1]), rtol=1e-12)


def jump(x, sigma, sigma_to):
  return steps.ddim_map(mixture().denoise)(x, sigma, sigma_to)


@pytest.mark.parametrize(
  "network, sampler",
  [
    (mixture().denoise, samplers.euler),
    (mixture().denoise, samplers.heun),
    (mixture().denoise, lambda *args, **kw: samplers.few_step(*args, KEY, **kw)),
    (jump, lambda *args, **kw: samplers.flow_map(*args, KEY, **kw)),
  ],
  ids=["euler", "heun", "few_step", "flow_map"],
)
@pytest.mark.parametrize("n", [1, 4])
def test_a_path_begins_with_the_noise_and_ends_with_the_samples(network, sampler, n):
  x, sigmas = noise(), schedules.karras_sigmas(n)
  path = sampler(network, x, sigmas, path=True)
  assert path.shape == (n + 1, *x.shape) and (path[0] == x).all()
  np.testing.assert_allclose(path[-1], sampler(network, x, sigmas), rtol=1e-12)
  # between them, x at each level: what is left to do from there ends at the same place
  for k in range(n) if sampler in (samplers.euler, samplers.heun) else ():
    np.testing.assert_allclose(sampler(network, path[k], sigmas[k:]), path[-1], rtol=1e-9)


def test_the_step_down_of_ancestral_sampling():
  s, t = jnp.float64(2.0), jnp.float64(1.0)
  np.testing.assert_allclose(steps.ancestral_down(s, t), 0.5)  # t^2 / s
  assert steps.ancestral_down(s, t, 0.0) == t and steps.ancestral_down(s, 0 * t) == 0


def test_the_vp_posterior_is_the_conditional_gaussian():
  """Of q(x_s | x0) q(x_t | x_s), by Bayes' rule on precisions."""
  alpha_t, alpha_s, x_t, x0 = 0.6, 0.9, 0.4, -1.2
  ratio = alpha_t / alpha_s
  forward, prior = 1 - ratio**2, 1 - alpha_s**2
  precision = ratio**2 / forward + 1 / prior
  want = (ratio * x_t / forward + alpha_s * x0 / prior) / precision

  def log_snr(alpha):
    return jnp.log(alpha**2 / (1 - alpha**2)) * jnp.ones(1)

  args = jnp.full((1, 1), x_t), jnp.full((1, 1), x0), log_snr(alpha_t), log_snr(alpha_s)
  mean, log_var = ddpm.vp_posterior(*args)
  np.testing.assert_allclose(mean[0, 0], want, rtol=1e-12)
  np.testing.assert_allclose(jnp.exp(log_var), 1 / precision, rtol=1e-12)
  beta = ddpm.vp_posterior(*args, large=1.0)[1]
  np.testing.assert_allclose(jnp.exp(beta), forward, rtol=1e-12)
  between = ddpm.vp_posterior(*args, large=0.3)[1]
  np.testing.assert_allclose(between, 0.3 * beta + 0.7 * log_var, rtol=1e-12)
  mean, log_var = ddpm.vp_posterior(*args[:3], jnp.full(1, jnp.inf))  # to clean data
  assert mean[0, 0] == x0 and log_var[0] == -jnp.inf


def test_tables_of_betas():
  for name in ddpm.NAMES:
    table = ddpm.betas(name, 50)
    assert table.shape == (50,) and ((table > 0) & (table <= 1)).all()
  table = ddpm.betas("quad", 1000, 0.00085, 0.012)
  alpha = jnp.sqrt(jnp.cumprod(1 - table))
  np.testing.assert_allclose(ddpm.levels(table), jnp.sqrt(1 - alpha**2) / alpha, rtol=1e-9)
  np.testing.assert_allclose(ddpm.levels(table)[-1], 14.6146, rtol=1e-5)
  with pytest.raises(Exception, match="linear"):
    ddpm.betas("lineer")


def test_preconditioned_networks_that_know_the_answer():
  """F that is exact for a standard normal, whose denoiser is x / (1 + sigma^2)."""
  sigma = jnp.array([0.01, 0.5, 3.0, 60.0])
  x = jax.random.normal(KEY, (4, 2)) * (1 + sigma[:, None])
  want = x / (1 + sigma[:, None] ** 2)
  spread = jnp.sqrt(1 + sigma[:, None] ** 2)
  epsilon = sigma[:, None] / spread  # eps of x / spread is this times it
  networks = {
    "edm": (preconditioning.edm(sigma, sigma_data=1.0), lambda x, c: jnp.zeros_like(x)),
    "vp": (preconditioning.vp(sigma), lambda x, c: epsilon * x),
    "iddpm": (preconditioning.iddpm(sigma), lambda x, c: epsilon * x),
    "ve": (preconditioning.ve(sigma), lambda x, c: -sigma[:, None] / spread**2 * x),
  }
  for name, (c, network) in networks.items():
    got = preconditioning.denoised(network, x, c)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12, err_msg=name)
  angle = jnp.array([0.05, 0.7, 1.5])
  c = preconditioning.flow_at_angle(angle)
  t = c.noise[:, None] / 1000
  x0, eps = jax.random.normal(KEY, (2, 3, 2))
  trig = jnp.cos(angle)[:, None] * x0 + jnp.sin(angle)[:, None] * eps
  np.testing.assert_allclose(c.input[:, None] * trig, (1 - t) * x0 + t * eps, rtol=1e-9)
  got = preconditioning.denoised(lambda x, c: eps - x0, trig, c)
  np.testing.assert_allclose(got, x0, rtol=1e-9, atol=1e-12)


def test_levels_of_improved_ddpm():
  u = preconditioning.iddpm_sigmas()
  assert len(u) == 1001 and u[-1] == 0 and (np.diff(u) < 0).all()
  c = preconditioning.iddpm(jnp.asarray(u[[0, 500, 999]]))
  np.testing.assert_array_equal(c.noise, [999, 499, 0])
