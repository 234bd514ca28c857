"""Calls for the golden values of schedules of noise and of how networks are read on them."""

import jax
import jax.numpy as jnp
import numpy as np
from diffusion_sampling_cases import STABLE_DIFFUSION, network

from distill_jax.diffusion import ddpm, preconditioning, schedules


def vp_posterior(i, h):
  kind, _, share = h["x_logvar"].partition(":")
  large = {"small": 0.0, "large": 1.0}.get(kind) if not share else float(share)
  mean, log_var = ddpm.vp_posterior(i.z_t, i.x, i.logsnr_t, i.logsnr_s, large=large)
  log_var = jnp.broadcast_to(schedules.expand(log_var, mean), mean.shape)
  return {"out": mean, "out_var": jnp.exp(log_var), "out_logvar": log_var}


def edm_precond(i, h):
  if "sigma_data" in h:
    c = preconditioning.edm(i.sigma, sigma_data=h["sigma_data"])
  else:  # which it is, VPPrecond, VEPrecond or iDDPMPrecond, stands in the source alone
    name = i.source.rpartition(":")[2].partition("Precond")[0]
    c = getattr(preconditioning, name.lower())(i.sigma)
  coefficients = dict(out_c_skip=c.skip, out_c_out=c.out, out_c_in=c.input, out_c_noise=c.noise)
  return {"out": preconditioning.denoised(network(i, lambda c: c), i.x, c), **coefficients}


def cosine_logsnr(i, h):
  schedule = schedules.vp_cosine(h["logsnr_min"], h["logsnr_max"])
  return schedules.log_snr(schedule, i.u)


def vp_logsnr_conversions(i, h):
  def alpha(log_snr):
    return jnp.sqrt(jax.nn.sigmoid(log_snr))

  by_log_snr = schedules.Schedule(alpha, lambda x: alpha(-x), lambda r: -2 * jnp.log(r), 20, -20)

  def convert(source, target):
    return schedules.convert(i.pred, i.z, i.logsnr, by_log_snr, source, target)

  a, s = (schedules.expand(alpha(x), i.z) for x in (i.logsnr, -i.logsnr))
  return {
    "out": convert("epsilon", "x0"),
    "out_eps_from_x": convert("x0", "epsilon"),
    "out_x_from_v": convert("v", "x0"),
    "out_v_from_x_eps": a * i.pred - s * i.z,
  }


def rcm_scaling(i, h):
  trig, flow = schedules.trigflow(), schedules.flow()
  rf = flow.time(jnp.tan(i.trig_time))
  c = preconditioning.flow_at_angle(i.trig_time, time_scale=h["t_scaling_factor"])
  return {
    "out": jnp.stack([c.skip, c.out, c.input, c.noise]),
    "out_rf": rf,
    "out_shift5": schedules.flow(5.0).sigma(rf),
    "out_back": trig.time(flow.sigma(rf) / flow.alpha(rf)),
  }


def away_from_zero(function):
  """FastGen's divisors are at least 1e-6; the derivative is the function's own."""

  def clamped(t):
    value = function(t)
    return value + jax.lax.stop_gradient(jnp.where(value < 1e-6, 1e-6 - value, 0))

  return clamped


def schedule_conversions(i, h):
  kind, t = h["schedule"], i.t
  if kind == "sd":
    abar = jnp.asarray(STABLE_DIFFUSION)[(1000 * np.asarray(t)).astype(int)]
    schedule = schedules.Schedule(
      lambda t: jnp.sqrt(abar), lambda t: jnp.sqrt(1 - abar), lambda ratio: t, 0.0, 1.0
    )
  else:
    named = {"edm": schedules.edm, "rf": schedules.flow, "trig": schedules.trigflow}
    schedule = named[kind]()
  alpha, sigma = schedule.alpha(t), schedule.sigma(t)
  x_t = schedules.noised(schedule, i.x0, i.noise, t)
  names = {"x0": "x0", "eps": "epsilon", "v": "v", "flow": "flow"}
  divided = dict(
    x0=schedule._replace(sigma=away_from_zero(schedule.sigma)),
    eps=schedule._replace(alpha=away_from_zero(schedule.alpha)),
  )
  others = ["x0", "eps", "v" if kind == "sd" else "flow"]
  out = {
    f"out_{a}_to_{b}": schedules.convert(
      i.pred, x_t, t, divided.get(a, schedule), names[a], names[b]
    )
    for a in others
    for b in others
    if a != b
  }
  out |= {"out": x_t, "out_alpha": alpha, "out_sigma": sigma, "out_sqrt_snr": alpha / sigma}
  if kind != "sd":
    rates = (schedules.expand(rate, i.x0) for rate in schedules.rates(schedule, t))
    out["out_cond_velocity"] = sum(r * x for r, x in zip(rates, (i.x0, i.noise), strict=True))
    out["out_t_from_sqrt_snr"] = schedule.time(sigma / alpha)
  return out


def beta_schedule(i, h):
  return ddpm.betas(h["schedule"], int(i.n), h["beta_start"], h["beta_end"])


CASES = {
  "beta_schedule": beta_schedule,
  "cosine_logsnr": cosine_logsnr,
  "edm_precond": edm_precond,
  "rcm_scaling": rcm_scaling,
  "schedule_conversions": schedule_conversions,
  "vp_logsnr_conversions": vp_logsnr_conversions,
  "vp_posterior": vp_posterior,
}
