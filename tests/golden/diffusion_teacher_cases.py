"""Calls for the golden values of targets from a teacher's steps."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from diffusion_networks import epsilon_net, expand, params

from distill_jax.diffusion import discretization as d
from distill_jax.diffusion import schedules
from distill_jax.losses import consistency as c
from distill_jax.losses import trajectories as tr

PD_WEIGHTS = {"snr_trunc": "truncated_snr", "v_mse": "snr_plus_one"}


def progressive_distillation_loss(i, h):
  path = schedules.vp_cosine(h["logsnr_min"], h["logsnr_max"])
  source = {"x": "x0", "eps": "epsilon", "v": "v"}[h["mean_type"]]

  def denoise(name, z, u):
    p = params(i, name)
    shift = p["b"] * expand(schedules.log_snr(path, u), z) / 20
    out = p["a"] * z + jnp.tanh(z @ p["W"] + shift)
    return schedules.convert(out, z, u, path, source, "x0")

  u = (i.i + 1) / h["num_steps"]
  middle, end = u - 0.5 / h["num_steps"], u - 1 / h["num_steps"]
  log_snr = schedules.log_snr(path, u)
  levels = [tr.vp(schedules.log_snr(path, s)) for s in (u, middle, end)]
  z = tr.noised(i.x, i.noise, levels[0])
  z2 = tr.ddim_step(z, denoise("teacher", z, u), *levels[:2])
  last = denoise("teacher", z2, middle)
  target = tr.inverse_ddim(z, tr.ddim_step(z2, last, *levels[1:]), levels[0], levels[2])
  target = jnp.where(expand(i.i, z) == 0, last, target)
  weight = PD_WEIGHTS.get(h["weight"], h["weight"])
  return tr.progressive(denoise("student", z, u), target, log_snr, weight=weight)


def guidance_distillation(i, h):
  scale = 1 + i.w
  return {
    "out": tr.guidance(i.student_x, i.x_cond, i.x_uncond, scale, i.logsnr),
    "out_target": tr.guided(i.x_cond, i.x_uncond, scale),
  }


def boot_target(i, h):
  return {
    "out": tr.boot_target(i.y_t, i.teacher_x0, i.logsnr_t, i.logsnr_s),
    "out_x_t": tr.boot_input(i.y_t, i.noise, i.logsnr_t),
  }


def multistep_consistency_target(i, h):
  t, s, step = (tr.vp(x) for x in (i.logsnr_t, i.logsnr_s, i.logsnr_step))
  z_s = tr.ddim_step(i.z_t, i.x_teacher, t, s)
  z_step = tr.ddim_step(z_s, i.x_student_s, s, step)
  return {
    "out": tr.inverse_ddim(i.z_t, z_step, t, step),
    "out_z_s": z_s,
    "out_z_step": z_step,
    "out_addim": tr.addim_step(i.z_t, i.x_teacher, t, s, eta=h["eta"]),
  }


def ode_regression(i, h):
  return jnp.mean(tr.ode_regression(i.gen, i.target))


ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def level(alphas_cumprod):
  return jnp.sqrt(alphas_cumprod), jnp.sqrt(1 - alphas_cumprod)


def x0_of(x, eps, at):
  alpha, sigma = (expand(a, x) for a in at)
  return (x - sigma * eps) / alpha


def lcm_ddim_solver_grid(i, h):
  n = h["ddim_timesteps"]
  timesteps = d.ddim_timesteps(n, len(i.alphas_cumprod))
  return jnp.stack([timesteps, *d.ddim_grid(i.alphas_cumprod, n)])


def lcm_scalings(i, h):
  return jnp.stack(tr.lcm_scalings(i.t, **h))


def solver(i, h):
  """What LCM and PCM share: indices and times, noised latents, levels, the teacher's step."""
  n = h["num_ddim_timesteps"]
  index = np.asarray(i.index).astype(int)
  start = d.ddim_timesteps(n)[index]
  then = jnp.maximum(start - 1000 // n, 0)
  acs = jnp.asarray(ALPHAS_CUMPROD)
  now, at = level(acs[start]), level(acs[then])
  step_end = level(d.ddim_grid(acs, n)[1][index])
  z = tr.noised(i.latents, i.noise, now)
  net = epsilon_net(params(i, "teacher"))
  x0 = x0_of(z, net(z, start, i.cond), now)
  if not h.get("no_cfg_solver"):
    x0 = tr.guided(x0, x0_of(z, net(z, start, i.uncond), now), 1 + i.w)
  return index, start, then, z, now, at, tr.ddim_step(z, x0, now, step_end)


def lcm_distance(h):
  return c.mean_squared if h["loss_type"] == "l2" else partial(c.mean_pseudo_huber, c=h["huber_c"])


def lcm_loss(i, h):
  _, start, then, z, now, at, previous = solver(i, h)
  embedding = jnp.mean(tr.guidance_embedding(i.w, h["emb_dim"]), axis=-1)

  def f(name, x, t, at):
    p = params(i, name)
    x0 = x0_of(x, epsilon_net(p)(x, t, i.cond + p["d"] * embedding), at)
    c_skip, c_out = (expand(a, x) for a in tr.lcm_scalings(t))
    return c_skip * x + c_out * x0

  online, target = f("student", z, start, now), f("target", previous, then, at)
  loss = jnp.mean(c.consistency(online, target, distance=lcm_distance(h)))
  return {"out": loss, "out_x_prev": previous, "out_target": target, "out_pred": online}


def pcm_loss(i, h):
  index, start, then, z, now, at, previous = solver(i, h)
  n = h["num_ddim_timesteps"]
  edges = d.phase_edges(n, h["multiphase"])
  edge = d.phase_edge(index, edges)
  end = level(d.ddim_grid(jnp.asarray(ALPHAS_CUMPROD), n)[1][edge])
  net = epsilon_net(params(i, "student"))

  def to_edge(x, t, at):
    return tr.ddim_step(x, x0_of(x, net(x, t, i.cond), at), at, end)

  online = to_edge(z, start, now)
  target = tr.segment_target(previous, to_edge(previous, then, at), edge == index)
  loss = jnp.mean(c.consistency(online, target, distance=lcm_distance(h)))
  return {"out": loss, "out_target": target, "out_pred": online}


def pcm_multiphase(i, h):
  n, index = h["ddim_timesteps"], np.asarray(i.index).astype(int)
  edges = d.phase_edges(n, h["multiphase"])
  edge = d.phase_edge(index, edges)
  clean = d.ddim_grid(i.alphas_cumprod, n)[1]
  at_edge = (edge == index).astype(float)
  return {
    "out": tr.noised(i.pred_x0, i.pred_eps, level(clean[edge])),
    "out_end_t": d.previous_timesteps(n)[edge],
    "out_ddim": tr.noised(i.pred_x0, i.pred_eps, level(clean[index])),
    "out_c_skip": at_edge,
    "out_c_out": 1 - at_edge,
  }


CASES = {
  function.__name__: function
  for function in (
    progressive_distillation_loss,
    guidance_distillation,
    boot_target,
    multistep_consistency_target,
    ode_regression,
    lcm_ddim_solver_grid,
    lcm_scalings,
    lcm_loss,
    pcm_loss,
    pcm_multiphase,
  )
}
CASES["lcm_w_embedding"] = lambda i, h: tr.guidance_embedding(i.w, h["embedding_dim"])
