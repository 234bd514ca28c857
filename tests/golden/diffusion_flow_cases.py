"""Calls for the golden values of MeanFlow, shortcut models and rectified flow."""

import jax
import jax.numpy as jnp
import numpy as np
from diffusion_networks import average_net, expand, params, velocity_net

from distill_jax.diffusion import discretization as d
from distill_jax.losses import consistency as c
from distill_jax.losses import flow_maps as fm
from distill_jax.losses import trajectories as tr


def fastgen_meanflow_loss(i, h):
  x = fm.interpolate(i.x0, i.noise, i.t)
  v = velocity_net(params(i, "teacher"))(x, i.t) if h["use_cd"] else i.noise - i.x0
  u, du = jax.jvp(
    average_net(params(i, "student")),
    (x, i.t, i.r),
    (v, jnp.ones_like(i.t), jnp.zeros_like(i.r)),
  )
  warmup = d.tangent_warmup(h["iteration"], h["warmup"])
  target = fm.meanflow_target(v, du, i.t, i.r, warmup=warmup, max_interval=0.999)
  kind, p = h["norm_method"].split("_")
  assert kind == "poly"
  kwargs = {"p": float(p), "c": h["norm_const"]}
  if h["loss_type"] == "l2":
    return fm.meanflow(u, target, **kwargs)
  return fm.meanflow_normalised(u, target, scaled=h["spatial_inv"], **kwargs)


def meanflow_loss(i, h):
  p, size = params(i, "net"), len(i.images)
  emb = p.pop("emb")
  t, r = (jax.nn.sigmoid(u * h["P_std"] + h["P_mean"]) for u in (i.u_t, i.u_r))
  t, r = jnp.maximum(t, r), jnp.minimum(t, r)
  position = jnp.arange(size)
  r = jnp.where(position < int(size * h["data_proportion"]), t, r)
  z, v = fm.interpolate(i.images, i.noise, t), i.noise - i.images
  labels = np.asarray(i.labels).astype(int)

  def net(y):
    return average_net(p, expand(emb[y], z))

  guided = v
  if h["guidance_eq"] == "cfg":
    inside = (t >= h["t_start"]) & (t <= h["t_end"])
    guided = fm.meanflow_guided(
      v,
      net(jnp.full(size, h["num_classes"]))(z, t, t),
      net(labels)(z, t, t),
      omega=jnp.where(inside, h["omega"], 1.0),
      kappa=jnp.where(inside, h["kappa"], 0.0),
    )
  dropped = position < jnp.sum(i.drop_u < h["class_dropout_prob"])
  labels = jnp.where(dropped, h["num_classes"], labels)
  guided = jnp.where(expand(dropped, z), v, guided)
  u, du = jax.jvp(net(labels), (z, t, r), (guided, jnp.ones_like(t), jnp.zeros_like(r)))
  target = fm.meanflow_target(guided, du, t, r)
  loss = fm.meanflow(u, target, p=h["norm_p"], c=h["norm_eps"])
  return {"out": jnp.mean(loss), "out_v_loss": fm.meanflow(u, v, p=0.0)}


def shortcut_targets(i, h):
  count, steps = h["batch_size"] // h["bootstrap_every"], h["denoise_timesteps"]
  sections = steps.bit_length() - 1
  bias = h["bootstrap_dt_bias"]
  level = (d.shortcut_levels_biased if bias else d.shortcut_levels)(count, sections)
  level = level.astype(float)
  if h["force_dt"] != -1:
    level = jnp.full(count, float(h["force_dt"]))
  t = i.t_int_bootstrap / 2**level
  t_flow = i.t_int_flow / steps
  if h["force_t"] != -1:
    t, t_flow = (jnp.full(x.shape, float(h["force_t"])) for x in (t, t_flow))
  almost = 1 - 1e-5
  p = params(i, "net")
  labels = np.asarray(i.labels).astype(int)

  def net(x, t, level, y):
    shift = expand(p["b"] * t + p["c"] * level / 10 + p["emb"][y], x)
    return p["a"] * x * jnp.cos(expand(t, x)) + jnp.tanh(x @ p["W"] + shift)

  guided_count = (count // 2 if bias else count) // sections

  def velocity(x, t):
    v = net(x, t, level + 1, labels[:count])
    if not h["bootstrap_cfg"]:
      return v
    null = np.full(count, h["num_classes"])
    guided = tr.guided(v, net(x, t, level + 1, null), jnp.asarray(h["bootstrap_cfg"]))
    return jnp.where(expand(jnp.arange(count) < guided_count, x), guided, v)

  def noised(x1, x0, t):
    t = expand(t, x1)
    return (1 - almost * t) * x0 + t * x1

  half = 2**-level / 2
  x = noised(i.images[:count], i.noise_bootstrap, t)
  first = velocity(x, t)
  second = velocity(fm.shortcut_midpoint(x, first, half), t + half)
  rest = h["batch_size"] - count
  dropped = np.where(np.asarray(i.label_drop) != 0, h["num_classes"], labels)
  flow = i.images - almost * i.noise_flow
  x_flow = noised(i.images, i.noise_flow, t_flow)
  parts = {
    "out": (fm.shortcut_target(first, second), flow),
    "out_x_t": (x, x_flow),
    "out_t": (t, t_flow),
    "out_dt_base": (level, jnp.full(len(i.images), float(sections))),
    "out_labels": (labels[:count], dropped),
  }
  return {k: jnp.concatenate([a, b[:rest]]).astype(float) for k, (a, b) in parts.items()}


def rectified_flow_loss(i, h):
  eps, kind = h["eps"], h["schedule"]
  size = len(i.x1)
  if kind == "uniform":
    t = i.draw * (1 - eps) + eps
  elif kind in ("t0", "t1"):
    t = jnp.full(size, eps if kind == "t0" else 1.0)
  else:
    t = i.draw * (1 - eps) / int(kind) + eps
  x = fm.interpolate(i.z0, i.x1, t)
  loss = fm.rectified_flow(velocity_net(params(i, "net"))(x, t), i.z0, i.x1)
  return jnp.mean(loss) * (1.0 if h["reduce_mean"] else x.size // size / 2)


RFPP_DISTANCES = {
  "l2": c.root_mean_square,
  "l2-squared": c.mean_squared,
  "huber": fm.scaled_pseudo_huber,
}


def rfpp_loss(i, h):
  x = fm.interpolate(i.x, i.z, i.t)
  velocity = velocity_net(params(i, "net"))(x, i.t)
  loss = fm.rectified_flow(velocity, i.x, i.z, distance=RFPP_DISTANCES[h["loss_type"]])
  return {"out": jnp.mean(loss), "out_per_sample": loss}


def rfpp_t_pdf(i, h):
  a = float(i.a)
  return {"out": d.u_shaped_density(i.t, a=a), "out_exp": d.exponential_density(i.t, a=a)}


CASES = {
  function.__name__: function
  for function in (
    fastgen_meanflow_loss,
    meanflow_loss,
    shortcut_targets,
    rectified_flow_loss,
    rfpp_loss,
    rfpp_t_pdf,
  )
}
