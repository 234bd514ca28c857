"""Calls for the golden values of discrete consistency models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from diffusion_networks import denoiser, expand, noise_net, params

from distill_jax.diffusion import discretization as d
from distill_jax.diffusion import schedules
from distill_jax.losses import consistency as c
from distill_jax.losses import continuous_consistency as cc
from distill_jax.losses import trajectories as tr


def preconditioned(p, **scalings):
  """D = c_skip x + c_out F(c_in x, log(s) / 4)."""
  net = noise_net(p)

  def apply(x, s):
    c_skip, c_out, c_in = (expand(a, x) for a in c.boundary_scalings(s, **scalings))
    return c_skip * x + c_out * net(c_in * x, jnp.log(s) / 4)

  return apply


CM_WEIGHTS = {"snr+1": "snr_plus_one", "snrp1": "snr_plus_one", "truncated-snr": "truncated_snr"}


CM_DISTANCES = {"l1": c.mean_absolute, "l2": c.mean_squared, "linf": c.largest}


def cm_weight(sigma, name, **kwargs):
  return d.cm_weight(sigma, CM_WEIGHTS.get(name, name), **kwargs)


def heun(denoise, x, t, then):
  denoised = denoise(x, t)
  euler = c.euler_step(x, denoised, t, then)
  return c.heun_step(x, denoised, euler, denoise(euler, then), t, then)


def cm_loss(i, h):
  scalings = {"sigma_data": h["sigma_data"], "sigma_min": h["sigma_min"]}
  student = preconditioned(params(i, "student"), **scalings)
  intervals = h["num_scales"] - (h["kind"] != "progdist")

  def sigma(index):
    return schedules.karras_sigma(index / intervals, h["sigma_min"], h["sigma_max"], h["rho"])

  t, then = sigma(i.indices), sigma(i.indices + 1)
  x = i.x_start + expand(t, i.x_start) * i.noise
  if h["kind"] == "ct":
    x2 = c.euler_step(x, i.x_start, t, then)
  else:
    teacher = preconditioned(params(i, "teacher"), sigma_data=h["sigma_data"], sigma_min=0.0)
  if h["kind"] == "cd":
    x2 = heun(teacher, x, t, then)
  if h["kind"] == "progdist":
    half = sigma(i.indices + 0.5)
    middle = c.euler_step(x, teacher(x, t), t, half)
    end = c.euler_step(middle, teacher(middle, half), half, then)
    target = tr.euler_denoised(x, end, t, then)
  else:
    target = preconditioned(params(i, "target"), **scalings)(x2, then)
  return c.consistency(
    student(x, t),
    target,
    distance=CM_DISTANCES[h["loss_norm"]],
    weight=cm_weight(t, h["weight_schedule"], sigma_data=h["sigma_data"]),
  )


def cm_jax_student(p):
  net = denoiser(p)

  def apply(x, t):
    c_skip, c_out, _ = (expand(a, x) for a in c.boundary_scalings(t))
    return c_skip * x + c_out * net(x, t)

  return apply


def cm_jax_loss(i, h):
  student = cm_jax_student(params(i, "student"))
  teacher = (lambda x, t: i.images) if h["dsm_target"] else denoiser(params(i, "teacher"))
  index = i.indices.astype(jnp.float32)  # the authors' times come from int32 numbers, in float32
  t, then = (schedules.karras_sigma((index + k) / (h["num_scales"] - 1)) for k in (0, 1))
  x = i.images + expand(t, i.images) * i.noise
  x2 = heun(teacher, x, t, then)
  if h["solver"] == "euler":
    x2 = c.euler_step(x, teacher(x, t), t, then)
  losses = c.consistency(
    student(x, t),
    student(x2, then),
    distance=CM_DISTANCES[h["loss_norm"]],
    weight=cm_weight(t, h["weighting"]),
    stop_target=h["stopgrad"],
  )
  return jnp.nansum(losses) / len(losses)


def cm_continuous_loss(i, h):
  t = schedules.karras_sigma(1 - i.u)
  x = i.images + expand(t, i.images) * i.noise
  clean = i.images if h["dsm_target"] else denoiser(params(i, "teacher"))(x, t)
  student = cm_jax_student(params(i, "student"))
  slope = (clean - x) / expand(t, x)  # t score
  output, derivative = jax.jvp(student, (x, t), (slope, -jnp.ones_like(t)))
  if h["stopgrad"]:
    return jnp.mean(cc.continuous(output, derivative))
  distance = CM_DISTANCES | {"l2": c.euclidean}
  return jnp.mean(distance[h["loss_norm"]](derivative, jnp.zeros_like(derivative)))


def cm_schedule(i, h):
  step = np.asarray(i.step).astype(int)
  if h["scale_mode"] == "progdist":
    scales = d.progressive_scales(
      step, steps_per_stage=h["distill_steps_per_iter"], start=h["start_scales"]
    )
    return jnp.stack([jnp.ones(scales.shape), scales], axis=-1)
  start, end = h["start_scales"], h["end_scales"]
  scales = d.cm_scales(step, steps=h["total_steps"], start=start, end=end)
  ema = jnp.full(scales.shape, h["start_ema"])
  if h["target_ema_mode"] == "adaptive":
    ema = d.cm_target_ema(scales, start=start, start_ema=h["start_ema"])
  return jnp.stack([ema, scales], axis=-1)


def cm_weightings(i, h):
  return cm_weight(i.sigma, h["weight_schedule"], sigma_data=h["sigma_data"])


def cm_scalings(i, h):
  kwargs = {"sigma_data": h["sigma_data"]}
  return {
    "out": jnp.stack(c.boundary_scalings(i.sigma, sigma_min=h["sigma_min"], **kwargs)),
    "out_edm": jnp.stack(c.boundary_scalings(i.sigma, sigma_min=0.0, **kwargs)),
  }


def ctm_scalings(i, h):
  outer = partial(c.ctm_scalings, i.t, i.s, **h)
  edm = c.boundary_scalings(i.t, sigma_data=h["sigma_data"], sigma_min=0.0)
  return {
    "out": jnp.stack(outer()),
    "out_outer_variance": jnp.stack(outer(form="variance")),
    "out_outer_euler_variance_mixed": jnp.stack(outer(form="mixed")),
    "out_inner_edm": jnp.stack(edm[:2]),
    "out_inner_cm": jnp.stack(c.boundary_scalings(i.t, **h)[:2]),
    "out_inner_no": jnp.stack([jnp.zeros_like(i.t), jnp.ones_like(i.t)]),
  }


def ect_loss(i, h):
  t = jnp.exp(h["P_std"] * i.u + h["P_mean"])
  k = 0.0 if h.get("adj") == "const" else h["k"]
  r = d.ect_r(t, d.ect_gap(h["stage"], q=h["q"]), k=k, b=h["b"])
  net = denoiser(params(i, "net"))
  x_t, x_r = (i.images + expand(s, i.images) * i.noise for s in (t, r))
  target = c.clean_at_zero(net(x_r, r), i.images, r)
  out = c.ect(net(x_t, t), target, t, r, c=h["c"])
  return {"out": out, "out_t": t, "out_r": r}


def ect_precond(i, h):
  out = preconditioned(params(i, "net"), **h)(i.x, i.sigma)
  train = preconditioned(params(i, "net"), sigma_data=h["sigma_data"], sigma_min=0.0)
  return {"out": out, "out_train": train(i.x, i.sigma)}


def ect_t_to_r(i, h):
  return d.ect_r(i.t, d.ect_gap(i.stage, q=h["q"])[:, None], k=h["k"], b=h["b"])


def ict_loss(i, h):
  sigmas = d.ascending_sigmas(h["N"], h["N"])
  index = np.asarray(i.indices).astype(int)
  then, t = sigmas[index], sigmas[index + 1]
  net = denoiser(params(i, "net"))
  clean, noisy = (i.x0 + expand(s, i.x0) * i.noise for s in (then, t))
  return c.ict(net(noisy, t), net(clean, then), t, then)


def ict_schedule(i, h):
  step = np.asarray(i.step).astype(int)
  return jnp.asarray(d.ict_scales(step, steps=h["K"], start=h["s0"], end=h["s1"]), float)


def ict_weights(i, h):
  grid = {name: h[name] for name in ("sigma_min", "sigma_max", "rho")}
  sigmas = d.ascending_sigmas(i.N, int(i.N), **grid)
  return {
    "out": d.ict_probabilities(sigmas, mean=h["P_mean"], std=h["P_std"]),
    "out_sigmas": sigmas,
    "out_lam": d.ict_weights(sigmas),
  }


CASES = {
  function.__name__: function
  for function in (
    cm_loss,
    cm_jax_loss,
    cm_continuous_loss,
    cm_schedule,
    cm_weightings,
    cm_scalings,
    ctm_scalings,
    ect_loss,
    ect_precond,
    ect_t_to_r,
    ict_loss,
    ict_schedule,
    ict_weights,
  )
}
