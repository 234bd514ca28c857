"""Calls for the golden values of score distillation by predicted noise: SDS, VSD, ASD, ESD."""

import jax
import jax.numpy as jnp
import numpy as np
from diffusion_networks import epsilon_net, params

from distill_jax.diffusion.schedules import Schedule, convert, guided, noised
from distill_jax.losses import scores
from distill_jax.losses.denoising import squared_error


def table(cumulative):
  """The schedule of a table of alpha^2, its time the index."""
  cumulative = np.asarray(cumulative)
  steps = lambda t: jnp.asarray(t).astype(int)  # noqa: E731
  alpha = lambda t: jnp.asarray(np.sqrt(cumulative))[steps(t)]  # noqa: E731
  sigma = lambda t: jnp.asarray(np.sqrt(1 - cumulative))[steps(t)]  # noqa: E731
  return Schedule(alpha, sigma, jnp.asarray, 0.0, len(cumulative) - 1.0)


STABLE = table(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))


def gradient(loss, x):
  """The gradient in x that a loss passes, entry by entry."""
  return jax.grad(lambda x: jnp.sum(loss(x)))(x)


def weight(t, name):
  return scores.noise_weight(STABLE.alpha(t), STABLE.sigma(t), name=name)


def sds(i, h):
  """The guidance scale counts from 0, except with Perp-Neg."""
  x_t, net = noised(STABLE, i.latents, i.noise, i.t), epsilon_net(params(i, "net"))
  text, uncond = (net(x_t, i.t, c) for c in (i.text, i.uncond))
  scale = h["guidance_scale"]
  if h["perp_neg"]:
    negatives = negative_eps(i, net, x_t)
    eps = scores.perp_neg(uncond, text, negatives, i.neg_weights.T, scale=scale)
  else:
    eps = guided(uncond, text, 1 + scale)
  w = weight(i.t, h["weighting"])
  loss = lambda x: scores.noise_difference(x, eps, i.noise, weight=w)  # noqa: E731
  grad, n = gradient(loss, i.latents), len(i.latents)
  return {"out": grad, "out_loss": jnp.sum(loss(i.latents)) / n, "out_latents_grad": grad / n}


def negative_eps(i, net, x_t):
  """[N, B, ...] as threestudio pairs them: a batch's prompts in the order of its images, with the
  whole batch of latents repeated, so that most negatives are asked of another image."""
  prompts = [getattr(i, n) for n in sorted(vars(i)) if n[:3] == "neg" and n[3:].isdigit()]
  n = len(prompts)
  x, t = jnp.concatenate([x_t] * n), jnp.concatenate([i.t] * n)
  eps = net(x, t, jnp.stack(prompts, axis=1).ravel())
  return jnp.stack([eps[k::n] for k in range(n)])


def vsd(i, h):
  x_t = noised(STABLE, i.latents, i.noise, i.t)
  pre, lora = (epsilon_net(params(i, n)) for n in ("pre", "lora"))
  teacher = guided(*(pre(x_t, i.t, c) for c in (i.uncond, i.text)), h["guidance_scale"])
  particle, marginal = (lora(x_t, i.t, c) for c in (i.text + i.camera, i.text))
  if h["lora_prediction_type"] == "v_prediction":
    particle, marginal = (
      convert(v, x_t, i.t, STABLE, "v", "epsilon") for v in (particle, marginal)
    )
  fake = scores.entropic(particle, marginal, entropy=1 - h["guidance_scale_lora"])
  w = weight(i.t, "sds")
  return gradient(lambda x: scores.noise_difference(x, teacher, fake, weight=w), i.latents)


def asd(i, h):
  w, clip = weight(i.t, h["weighting"]), h["grad_clip"]

  def loss(x):
    return scores.noise_difference(x, i.eps_cfg, i.eps_plus, weight=w, clip=clip)

  return {
    "out": jnp.sum(loss(i.latents)) / len(i.latents),
    "out_grad": gradient(loss, i.latents),
  }


def esd_gaussian(i, h):
  """Scores stand for noise, with the sign in the weight; alpha is of x itself."""
  alpha = jnp.cumprod(1 - (i.u * (0.02 - 1e-4) + 1e-4))
  sigma = jnp.sqrt((1 - alpha) / alpha)
  x = i.q_mu + i.c @ i.q_sigma.T
  x_t = alpha[:, None] * x + sigma[:, None] * i.noise

  def score(mean, root):
    eye, a, s = jnp.eye(x.shape[-1]), alpha[:, None, None], sigma[:, None, None]
    covariance = a**2 * (root @ root.T) + s**2 * eye
    towards = alpha[:, None] * mean - x_t
    return jnp.linalg.solve(covariance, towards[..., None])[..., 0]

  particle, marginal = score(x, jnp.zeros_like(i.q_sigma)), score(i.q_mu, i.q_sigma)
  entropy = h["lam"] if h["method"] == "esd" else 0.0
  other = i.noise if h["method"] == "sds" else scores.entropic(particle, marginal, entropy=entropy)
  teacher, w = score(i.p_mu, i.p_sigma), -(1 - alpha) * sigma
  loss = lambda x: scores.noise_difference(x, teacher, other, weight=w)  # noqa: E731
  return {"out": jnp.sum(loss(x_t)) / len(x_t), "out_grad": gradient(loss, x_t)}


def swiftbrush(i, h):
  w = weight(i.t, "sds")
  return jnp.mean(scores.noise_difference(i.x0, i.teacher_eps, i.lora_eps, weight=w))


def swiftbrush_lora(i, h):
  return jnp.mean(squared_error(i.lora_eps, i.noise, weight=STABLE.alpha(i.t) ** 2))


CASES = {
  "asd_grad": asd,
  "asd_t_plus": lambda i, h: scores.asynchronous_time(
    i.t, ratio=h["plus_ratio"], min_step=h["min_step"]
  ),
  "esd_gaussian": esd_gaussian,
  "sds_grad": sds,
  "swiftbrush_lora": swiftbrush_lora,
  "swiftbrush_vsd": swiftbrush,
  "vsd_grad": vsd,
}
