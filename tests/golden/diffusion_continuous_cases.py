"""Calls for the golden values of sCM and rCM, and of the consistency models of FastGen."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from diffusion_networks import denoiser, expand, params, velocity_net

from distill_jax.diffusion import discretization as d
from distill_jax.diffusion import schedules
from distill_jax.losses import consistency as c
from distill_jax.losses import continuous_consistency as cc
from distill_jax.losses import flow_maps as fm
from distill_jax.losses import trajectories as tr


def fastgen_t_to_r(i, h):
  return d.ect_r(i.t, 1 - i.ratio[:, None], minimum=h["min_r"])


def fastgen_ct_ratio(i, h):
  step = np.asarray(i.iteration).astype(int)
  stage = d.ect_stage(step, batch=h["batch_size"], kimg=h["kimg_per_stage"])
  gap = d.ect_gap(stage, q=h["q"], smallest=1 - h["ratio_limit"])
  return jnp.stack([stage, 1 - gap], axis=-1)


FASTGEN_WEIGHTS = {
  "default": lambda t, r, c_out: 1 / (t - r),
  "c_out": lambda t, r, c_out: 1 / c_out,
  "c_out_sq": lambda t, r, c_out: 1 / c_out**2,
  "sigma_sq": lambda t, r, c_out: 1 / t**2,
  "sqrt": lambda t, r, c_out: 1 / jnp.sqrt(t - r),
  "one": lambda t, r, c_out: 1.0,
}


def fastgen_cm_loss(i, h):
  r = d.ect_r(i.t, 1 - h["ratio"], minimum=h["min_r"])
  t = jnp.where(r >= i.t - 1e-6, r + 1e-6, i.t)
  shift = h["cond_shift"] or 0.0
  student = denoiser(params(i, "student"))
  x_t, x_r = (i.x0 + expand(s, i.x0) * i.noise for s in (t, r))
  if h["use_cd"]:
    denoised = denoiser(params(i, "teacher"))(x_t, t)
    if h["guidance_scale"] is not None:
      denoised = tr.guided(
        denoised + shift, denoised + (h["uncond_shift"] or 0.0), jnp.asarray(h["guidance_scale"])
      )
    else:
      denoised = denoised + shift
    x_r = c.euler_step(x_t, denoised, t, r)
  distance = partial(c.pseudo_huber, c=h["huber_const"])
  if h["use_squared_l2"] and h["huber_const"] <= 0:
    distance = lambda x, y: c.mean_squared(x, y) * (x.size // len(x))  # noqa: E731
  pair = (student(x_t, t) + shift, c.clean_at_zero(student(x_r, r) + shift, i.x0, r))
  c_out = c.boundary_scalings(t, sigma_data=h["sigma_data"], sigma_min=0.0)[1]
  weight = FASTGEN_WEIGHTS[h["weighting"]](t, r, c_out)
  return {
    "out": c.consistency(*pair, distance=distance, weight=weight),
    "out_unweighted": c.consistency(*pair, distance=distance),
    "out_r": r,
  }


def fastgen_scm_loss(i, h):
  sd, p = h["sigma_data"], params(i, "student")
  angle = jnp.arctan2(i.t, sd)
  z = sd * i.noise
  cos, sin = jnp.cos(expand(angle, z)), jnp.sin(expand(angle, z))
  x = cos * i.x0 + sin * z

  def network(p, shift):
    net = denoiser(p)

    def apply(x, angle):
      t = sd * jnp.tan(angle)
      denoised = net(x * jnp.sqrt(1 + expand(t / sd, x) ** 2), t) + (shift or 0.0)
      angle = expand(angle, x)
      return (jnp.cos(angle) * x - denoised) / jnp.sin(angle) / sd

    return apply

  velocity = cc.trigflow_velocity(i.x0, z, angle)
  if h["use_cd"]:
    teacher = params(i, "teacher")
    velocity = sd * network(teacher, h["cond_shift"])(x, angle)
    if h["guidance_scale"] is not None:
      unguided = sd * network(teacher, h["uncond_shift"])(x, angle)
      velocity = tr.guided(velocity, unguided, jnp.asarray(h["guidance_scale"]))
  student = network(p, h["cond_shift"])
  bound = jnp.pi / 2 - 1e-4
  clipped = lambda x, angle: student(x, jnp.clip(angle, -bound, bound))  # noqa: E731
  if h["finite_diff"]:  # a central difference on the line between the data and the noise
    at = jnp.clip(angle, -jnp.pi / 2 + 1e-5, jnp.pi / 2 - 1e-5)
    step = jnp.maximum(h.get("jvp_finite_diff_eps", 1e-3) * jnp.abs(at), 1e-6)
    ends = []
    for end in (jnp.minimum(at + step, jnp.pi / 2 - 1e-5), at - step):
      wide = expand(end, z)
      ends.append(clipped(jnp.cos(wide) * i.x0 + jnp.sin(wide) * z, end))
    speed = jnp.cos(at) * jnp.sin(at) / (2 * step)
    jvp = expand(speed, z) * (ends[0] - ends[1])
  else:
    speed = jnp.cos(angle) * jnp.sin(angle)
    jvp = jax.jvp(clipped, (x, angle), (expand(speed, z) * velocity, speed))[1]
  out = student(x, angle)
  tangent = cc.scm_tangent(
    out,
    velocity,
    x,
    jvp,
    angle,
    sigma_data=sd,
    warmup=d.tangent_warmup(h["iteration"], h["tangent_warmup_steps"]),
  )
  tangent = cc.normalised(tangent, c=h["c"], root_mean_square=h["g_norm_spatial_invariance"])
  weight = cc.prior_weight(angle, sigma_data=sd) if h["prior_weighting"] else 1.0
  weight = weight / (x.size // len(x) if h["divide_x0_dim"] else 1)
  return {
    "out": cc.scm(out, tangent, weight=weight, log_variance=p["l"] * jnp.log(i.t)),
    "out_unweighted": cc.scm(out, tangent),
  }


def sana_scm_loss(i, h):
  sd, p = h["sigma_data"], params(i, "student")
  cos, sin = jnp.cos(expand(i.t, i.x0)), jnp.sin(expand(i.t, i.x0))
  x = cos * i.x0 + sin * sd * i.noise
  velocity = sd * velocity_net(params(i, "teacher"))(x / sd, i.t)
  if h["has_cfg"]:
    unguided = sd * velocity_net(params(i, "uncond"))(x / sd, i.t)
    velocity = tr.guided(velocity, unguided, i.cfg)
  speed = jnp.cos(i.t) * jnp.sin(i.t)
  out, jvp = jax.jvp(velocity_net(p), (x / sd, i.t), (cos * sin * velocity / sd, speed))
  warmup = d.tangent_warmup(h["global_step"], h["warmup"])
  tangent = cc.scm_tangent(out, velocity, x, jvp, i.t, sigma_data=sd, warmup=warmup)
  tangent = cc.normalised(tangent)
  weight = cc.prior_weight(i.t, sigma_data=sd)
  return {
    "out": jnp.mean(cc.scm(out, tangent, weight=weight, log_variance=p["l"] * jnp.cos(i.t))),
    "out_loss_no_logvar": jnp.mean(cc.scm(out, tangent, weight=weight)),
    "out_pred_x0": cc.trig_step(x, sd * out, i.t),
  }


def rcm_networks(i, h):
  """(x, angle) -> x0 of the student, F of it, and the guided F of the teacher."""

  def denoise(p, e, x, angle):
    angle = expand(angle, x)
    c_in = 1 / (jnp.cos(angle) + jnp.sin(angle))
    net = p["a"] * (c_in * x) + jnp.tanh(c_in * x @ p["W"] + p["b"] * jnp.sin(angle) * c_in + e)
    return c_in * x - jnp.sin(angle) * c_in * net

  def velocity(p, e, x, angle):
    wide = expand(angle, x)
    return (jnp.cos(wide) * x - denoise(p, e, x, angle)) / jnp.sin(wide)

  def teacher(x, angle):
    guided = velocity(params(i, "teacher"), i.cond, x, angle)
    if h["teacher_guidance"] <= 1:
      return guided
    unguided = velocity(params(i, "teacher"), i.uncond, x, angle)
    return tr.guided(guided, unguided, jnp.asarray(h["teacher_guidance"]))

  student = params(i, "student")
  return partial(denoise, student, i.cond), partial(velocity, student, i.cond), teacher


def rcm_scm_loss(i, h):
  _, student, teacher = rcm_networks(i, h)
  angle = i.time[:, 0]
  cos, sin = jnp.cos(expand(angle, i.x0)), jnp.sin(expand(angle, i.x0))
  x = cos * i.x0 + sin * i.noise
  velocity = teacher(x, angle)
  speed, step = jnp.cos(angle) * jnp.sin(angle), h["fd_size"]
  out = student(x, angle)
  if h["fd_type"] == 2:
    before = student(cc.trig_step(x, velocity, jnp.asarray(step)), angle - step)
    jvp = cos * sin * cc.difference_quotient(out, before, step)
  elif h["fd_type"] == 1:
    before = student(x, angle - step)
    jvp = jax.jvp(student, (x, angle), (cos * sin * velocity, 0 * speed))[1]
    jvp = jvp + cos * sin * cc.difference_quotient(out, before, step)
  else:
    jvp = jax.jvp(student, (x, angle), (cos * sin * velocity, speed))[1]
  warmup = d.tangent_warmup(h["iteration"], h["tangent_warmup"])
  tangent = cc.scm_tangent(out, velocity, x, jvp, angle, warmup=warmup, rcm=True)
  out, tangent = cc.without_nan(out, tangent)
  return cc.scm(out, cc.normalised(tangent), weight=h["loss_scale"] * (x.size // len(x)))


def rcm_dcm_loss(i, h):
  student, _, teacher = rcm_networks(i, h)
  count, skip = h["dcm_total_steps"], h["dcm_skipping_interval_steps"]
  shift = h["dcm_timestep_shift"] if h["dcm_timestep_shift"] > 0 else 1.0
  path = schedules.flow(shift)
  first = i.u[:, 0] * (1 - skip / count)
  times = [1 - (first + k / count) for k in range(skip + 1)]
  angles = [jnp.arctan2(path.sigma(s), path.alpha(s)) for s in times]
  cos, sin = jnp.cos(expand(angles[0], i.x0)), jnp.sin(expand(angles[0], i.x0))
  start = x = cos * i.x0 + sin * i.noise
  for now, then in itertools.pairwise(angles):
    x = fm.jump(x, teacher(x, now), now, then)
  return c.consistency(
    student(start, angles[0]),
    student(x, angles[-1]),
    weight=h["loss_scale"] * (x.size // len(x)),
  )


CASES = {
  function.__name__: function
  for function in (
    fastgen_t_to_r,
    fastgen_ct_ratio,
    fastgen_cm_loss,
    fastgen_scm_loss,
    sana_scm_loss,
    rcm_scm_loss,
    rcm_dcm_loss,
  )
}
