"""Calls for the golden values of samplers."""

import functools

import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion import analytic, ddpm, preconditioning, schedules, steps
from distill_jax.losses.trajectories import lcm_scalings

STABLE_DIFFUSION = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def mixture(pi, mu, sd):
  return analytic.GaussianMixture(pi, mu, sd, jnp.zeros(len(pi), jnp.int32))


def network(i, time, extra=0.0):
  """The files' F, V and eps: a x + tanh(x W + b time + extra)."""

  def call(x, t):
    return i.net_a * x + jnp.tanh(x @ i.net_W + i.net_b * schedules.expand(time(t), x) + extra)

  return call


def denoiser(i):
  """The files' D."""

  def call(x, sigma):
    s = schedules.expand(sigma, x)
    return i.net_a * x / (1 + s**2) + jnp.tanh(x @ i.net_W + i.net_b * jnp.log(s))

  return call


def epsilon_denoiser(epsilon, abar, t):
  """x0 of x_t / alpha from a network of x_t and the timestep."""

  def call(x, sigma):
    return x - schedules.expand(sigma, x) * epsilon(jnp.sqrt(abar) * x, jnp.full(len(x), t))

  return call


def karras_grid(n, h):
  low = max(h.get("sigma_min", 0.002), h.get("net_sigma_min", 0))
  high = min(h.get("sigma_max", 80.0), h.get("net_sigma_max", np.inf))
  return jnp.append(schedules.karras_sigmas(n, low, high, h.get("rho", 7)), 0.0)


def churned_steps(denoise, x, grid, noises, churn, method):
  """A method's steps with stored noise; the last is Euler's."""
  velocity, n = steps.sigma_velocity(denoise), len(grid) - 1
  for j in range(n):
    x, level = steps.churned(x, grid[j], noises[j], churn, n)
    last = j == n - 1 and method is steps.heun_step
    x = (steps.euler_step if last else method)(velocity, x, level, grid[j + 1])
  return x


def edm_churn(h):
  return steps.Churn(
    h.get("S_churn", 0), h.get("S_min", 0), h.get("S_max", np.inf), h.get("S_noise", 1)
  )


def edm_sampler(i, h):
  grid = karras_grid(h["num_steps"], h)
  denoise = mixture(i.pi, i.mu, i.sd).denoise
  x = i.latents * grid[0]
  x = churned_steps(denoise, x, grid, i.noise, edm_churn(h), steps.heun_step)
  return {"out": x, "out_sigma_grid": grid}


def edm2_guided_sampler(i, h):
  grid, main, guide = (
    karras_grid(h["num_steps"], h),
    mixture(i.pi, i.mu, i.sd),
    mixture(i.gpi, i.gmu, i.gsd),
  )

  def denoise(x, sigma):
    return schedules.guided(guide.denoise(x, sigma), main.denoise(x, sigma), h["guidance"])

  x = i.latents * grid[0]
  return churned_steps(denoise, x, grid, i.noise, edm_churn(h), steps.heun_step)


def edm_ablation_sampler(i, h):
  n, kind, epsilon = h["num_steps"], h.get("discretization", "edm"), h.get("epsilon_s", 1e-3)

  def default(t):
    return np.sqrt(np.expm1(19.9 / 2 * t**2 + 0.1 * t))

  def ratio(schedule, t):
    return schedule.sigma(t) / schedule.alpha(t)

  low = {"vp": default(epsilon), "ve": 0.02, "iddpm": 0.002, "edm": 0.002}[kind]
  high = {"vp": default(1.0), "ve": 100.0, "iddpm": 81.0, "edm": 80.0}[kind]
  low, high = (float(h.get(k) or v) for k, v in (("sigma_min", low), ("sigma_max", high)))
  at_low, at_high = np.log1p(low**2), np.log1p(high**2)
  beta_d = 2 * (at_low / epsilon - at_high) / (epsilon - 1)
  vp = schedules.vp_linear(at_high - beta_d / 2, beta_d)
  u = jnp.arange(n) / (n - 1)
  match kind:
    case "vp":
      sigmas = ratio(vp, 1 + u * (epsilon - 1))
    case "ve":
      sigmas = jnp.sqrt(high**2 * (low**2 / high**2) ** u)
    case "iddpm":
      levels = preconditioning.iddpm_sigmas(
        h.get("M", 1000), floor=h.get("C_1", 0.001), offset=h.get("C_2", 0.008)
      )
      levels = levels[(levels >= low) & (levels <= high)]
      sigmas = levels[np.round((len(levels) - 1) / (n - 1) * np.arange(n)).astype(int)]
    case _:
      sigmas = schedules.karras_sigmas(n, low, high, h.get("rho", 7))
  level = {"vp": vp, "ve": schedules.ve(), "linear": schedules.edm()}[h.get("schedule", "linear")]
  if h.get("scaling", "none") == "none":
    level = level._replace(alpha=jnp.ones_like, sigma=functools.partial(ratio, level))
  else:
    sigma = functools.partial(ratio, level)
    level = level._replace(
      alpha=lambda t: 1 / jnp.sqrt(1 + sigma(t) ** 2),
      sigma=lambda t: sigma(t) / jnp.sqrt(1 + sigma(t) ** 2),
    )
  sigmas = jnp.asarray(sigmas)
  times = jnp.append(level.time(sigmas), 0.0)
  velocity = steps.schedule_velocity(mixture(i.pi, i.mu, i.sd).denoise, level)
  x = i.latents * level.sigma(times[0])
  if h.get("solver", "heun") == "euler":
    x = steps.integrate(functools.partial(steps.euler_step, velocity), x, times)
  else:
    x = steps.runge_kutta_2(velocity, x, times, stage=h.get("alpha", 1))
  return {"out": x, "out_sigma_grid": sigmas}


def cm_sampler(i, h):
  low, high, rho, n = h["smin"], h["smax"], h.get("rho", 7.0), h["steps"]
  denoise, x = denoiser(i), i.x_T
  sampler = h["sampler"]
  count = n + 1 if "progdist" in sampler else n
  grid = jnp.append(schedules.karras_sigmas(count, low, high, rho), 0.0)
  churn = steps.Churn(
    h.get("s_churn", 0), h.get("s_tmin", 0), h.get("s_tmax", np.inf), h.get("s_noise", 1)
  )
  if sampler == "stochastic_iterative_sampler":
    ts = jnp.asarray(h["ts"])
    levels = schedules.karras_sigma(ts / (n - 1), low, high, rho)
    for j in range(len(ts) - 1):
      x = steps.renoised_step(
        lambda x, sigma, _: denoise(x, sigma),
        x,
        levels[j],
        low,
        jnp.clip(levels[j + 1], low, high),
        i.noise[j],
      )
  elif sampler == "sample_euler_ancestral":
    for j in range(len(grid) - 1):
      down = steps.ancestral_down(grid[j], grid[j + 1])
      flow_map = steps.ddim_map(denoise)
      x = steps.renoised_step(flow_map, x, grid[j], down, grid[j + 1], i.noise[j])
  elif "progdist" in sampler:
    step = functools.partial(steps.euler_step, steps.sigma_velocity(denoise))
    x = steps.integrate(step, x, grid[:-1])
  elif "dpm" in sampler:
    x = churned_steps(denoise, x, grid, i.noise, churn, steps.midpoint_step)
  else:
    x = churned_steps(denoise, x, grid, i.noise, churn, steps.heun_step)
  return {"out": x, "out_sigmas": grid}


def ddim_sampler(i, h):
  """Song's grids of timesteps, as levels of noise; x_t is kept in their scale."""
  abar, epsilon = np.cumprod(1 - np.asarray(i.betas)), network(i, lambda t: t / 1000)
  seq = np.asarray(i.seq).astype(int)[::-1]
  after = np.append(abar[seq[1:]], 1.0)
  states = [i.x_T]
  for j, (t, now, then) in enumerate(zip(seq, abar[seq], after, strict=True)):
    x, denoise = states[-1], epsilon_denoiser(epsilon, now, t)
    sigma, sigma_next = np.sqrt((1 - now) / now), np.sqrt((1 - then) / then)
    if h["kind"] == "ddim":
      down = steps.ancestral_down(sigma, sigma_next, h["eta"])
      y = steps.renoised_step(
        steps.ddim_map(denoise), x / np.sqrt(now), sigma, down, sigma_next, i.noise[j]
      )
      states.append(np.sqrt(then) * y)
    else:
      x0 = jnp.clip(denoise(x / np.sqrt(now), jnp.full(len(x), sigma)), -1, 1)
      log_snr, log_snr_next = -2 * jnp.log(sigma), -2 * jnp.log(sigma_next)
      mean, log_var = ddpm.vp_posterior(x, x0, log_snr, log_snr_next, large=1.0)
      states.append(mean + (t != 0) * jnp.exp(log_var / 2) * i.noise[j])
  return jnp.stack(states)


def stable_diffusion_steps(i, step, clean):
  """LCM and TCD on the table of Stable Diffusion; `clean` is alpha^2 of what they return."""
  epsilon, timesteps = network(i, lambda t: t / 1000), np.asarray(i.timesteps).astype(int)
  previous, x = np.append(timesteps[1:], 0), i.x_T
  for j, (t, before) in enumerate(zip(timesteps, previous, strict=True)):
    last = j == len(timesteps) - 1
    now, then = STABLE_DIFFUSION[t], clean if last else STABLE_DIFFUSION[before]
    denoise = epsilon_denoiser(epsilon, now, t)
    x = np.sqrt(then) * step(denoise, x / np.sqrt(now), t, now, before, then, i.noise[j])
  return x


def level_of(abar):
  return np.sqrt((1 - abar) / abar)


def lcm_sampler(i, h):
  c_skip, c_out = lcm_scalings(i.timesteps)
  scalings = dict(
    zip(np.asarray(i.timesteps).astype(int), zip(c_skip, c_out, strict=True), strict=True)
  )

  def step(denoise, x, t, now, before, then, noise):
    def consistency(y, sigma, _):
      return scalings[t][0] * np.sqrt(now) * y + scalings[t][1] * denoise(y, sigma)

    return steps.renoised_step(consistency, x, level_of(now), 0.0, level_of(then), noise)

  return stable_diffusion_steps(i, step, 1.0)


def tcd_sampler(i, h):
  def step(denoise, x, t, now, before, then, noise):
    down = level_of(STABLE_DIFFUSION[int(np.floor((1 - h["eta"]) * before))])
    return steps.renoised_step(
      steps.ddim_map(denoise), x, level_of(now), down, level_of(then), noise
    )

  return stable_diffusion_steps(i, step, STABLE_DIFFUSION[0])


def pd_ddim_sampler(i, h):
  n, schedule = h["num_steps"], schedules.vp_cosine()
  times = jnp.arange(n, 0, -1) / n
  alphas, sigmas = schedule.alpha(times), schedule.sigma(times)
  levels = jnp.append(sigmas / alphas, 0.0)
  x = i.z / alphas[0]
  for j in range(n):

    def denoise(x, _, t=times[j : j + 1], alpha=alphas[j]):
      log_snr = jnp.broadcast_to(schedules.log_snr(schedule, t), len(x))
      z = alpha * x
      v = network(i, lambda log_snr: log_snr / 20)(z, log_snr)
      x0 = schedules.convert(v, z, jnp.broadcast_to(t, len(x)), schedule, "v", "x0")
      return jnp.clip(x0, -1, 1) if h["clip_x"] else x0

    x = steps.euler_step(steps.sigma_velocity(denoise), x, levels[j], levels[j + 1])
  return x


CASES = {
  "cm_sampler": cm_sampler,
  "ddim_sampler": ddim_sampler,
  "edm2_guided_sampler": edm2_guided_sampler,
  "edm_ablation_sampler": edm_ablation_sampler,
  "edm_sampler": edm_sampler,
  "lcm_sampler": lcm_sampler,
  "pd_ddim_sampler": pd_ddim_sampler,
  "tcd_sampler": tcd_sampler,
}
