"""Calls for the golden values of DMD and its kin, SiD and its kin, and their fake scores."""

import jax
import jax.numpy as jnp
import numpy as np
from diffusion_networks import denoiser, epsilon_net, params
from diffusion_noise_cases import STABLE, gradient, table

from distill_jax.diffusion.schedules import convert, guided, karras_sigma, noised
from distill_jax.losses import denoising as den
from distill_jax.losses import scores

DDPM = table(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))


def eps_to_x0(eps, x_t, t, schedule=STABLE):
  return convert(eps, x_t, t, schedule, "epsilon", "x0")


def per_example(x):
  return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def training_sigma(i, mean=-1.2, std=1.2):
  return jnp.exp(std * i.u + mean)


def dmd2_edm(i, h):
  x_t = i.latents + den.expand(i.sigma, i.latents) * i.noise
  if h.get("mode") == "zerodiv":  # both networks know x
    real = fake = i.latents
  else:
    real, fake = (denoiser(params(i, n))(x_t, i.sigma) for n in ("real", "fake"))
  real, fake = jax.lax.stop_gradient((real, fake))
  return with_gradient(lambda x: scores.distribution_matching(x, real, fake), i.latents)


def with_gradient(loss, x):
  return {"out": jnp.mean(loss(x)), "out_grad": gradient(loss, x)}


def dmd2_edm_fake(i, h):
  x_t = i.latents + den.expand(i.sigma, i.latents) * i.noise
  denoised = denoiser(params(i, "fake"))(x_t, i.sigma)
  return jnp.mean(den.edm(denoised, i.latents, i.sigma, sigma_data=h["sigma_data"]))


def guided_eps(net, x_t, t, i, scale):
  """DMD2 guides only above 1."""
  eps = net(x_t, t, i.text)
  if scale <= 1:
    return eps
  return guided(net(x_t, t, i.uncond), eps, scale)


def dmd2_sd(i, h):
  x_t = noised(STABLE, i.latents, i.noise, i.t)
  real, fake = (
    eps_to_x0(
      guided_eps(epsilon_net(params(i, n)), x_t, i.t, i, h[f"{n}_guidance_scale"]), x_t, i.t
    )
    for n in ("real", "fake")
  )
  real, fake = jax.lax.stop_gradient((real, fake))
  return with_gradient(lambda x: scores.distribution_matching(x, real, fake), i.latents)


def dmd2_sd_fake(i, h):
  x_t = noised(STABLE, i.latents, i.noise, i.t)
  return jnp.mean(den.squared_error(epsilon_net(params(i, "fake"))(x_t, i.t, i.text), i.noise))


def dmd_kl_grad(i, h):
  """Both guidance scales count from 0; at 0 the result is the conditional to the last bit."""
  real = i.rc + h["real_guidance_scale"] * (i.rc - i.ru)
  fake = i.fc + h["fake_guidance_scale"] * (i.fc - i.fu)
  normalize = h["normalization"]
  return gradient(lambda x: scores.distribution_matching(x, real, fake, normalize=normalize), i.x)


def fastgen_vsd(i, h):
  w = getattr(i, "scale", 1.0)
  return jnp.mean(
    scores.distribution_matching(i.gen, i.teacher_x0, i.fake_x0, weight=w, epsilon=1e-6)
  )


def diff_instruct(i, h):
  sigma = training_sigma(i, h["P_mean"], h["P_std"])
  x_t = i.images + den.expand(sigma, i.images) * i.noise
  real, fake = (denoiser(params(i, n))(x_t, sigma) for n in ("data", "gen"))
  return scores.diff_instruct(i.images, real, fake)


def decoupled(i, h):
  x = jnp.zeros_like(i.fake_x0)
  c, u, scale = i.real_cond_x0, i.real_uncond_x0, h["cfg"]
  matching = lambda x: scores.distribution_matching(x, c, i.fake_x0, normalize=False)  # noqa: E731
  guidance = lambda x: scores.guidance_augmentation(x, c, u, scale=scale)  # noqa: E731
  return {
    "out": gradient(lambda x: matching(x) + guidance(x), x),
    "out_dm": gradient(matching, x),
    "out_ca": gradient(guidance, x),
  }


def sid(i, h):
  sigma = karras_sigma(1 - i.u * h["tmax"] / 1000)
  x_t = i.images + den.expand(sigma, i.images) * i.noise
  real, fake = (denoiser(params(i, n))(x_t, sigma) for n in ("real", "fake"))
  if h.get("mode") == "nan":
    fake = fake.at[(0,) * fake.ndim].set(jnp.nan)
  loss = scores.sid(i.images, real, fake, alpha=h["alpha"])
  return loss[1:] if h.get("mode") == "nan" else loss  # ours is 0 where theirs has no row


def sid_fake(i, h):
  sigma = training_sigma(i, h["P_mean"], h["P_std"])
  x_t = i.images + den.expand(sigma, i.images) * i.noise
  denoised = denoiser(params(i, "fake"))(x_t, sigma)
  return den.edm(denoised, i.images, sigma, sigma_data=h["sigma_data"])


def sfd(i, h):
  x_t = noised(DDPM, i.x0, i.noise, i.t)
  real, fake = (
    eps_to_x0(epsilon_net(params(i, n))(x_t, i.t, condition), x_t, i.t, DDPM)
    for n, condition in (("p", i.p_cond), ("sg", i.sg_cond))
  )
  alpha = h["alpha"]
  if h["use_diffinst"]:
    (real, fake), alpha = jax.lax.stop_gradient((real, fake)), 1.0
  return per_example(scores.sid(i.x0, real, fake, alpha=alpha))


def sfd_fake(i, h):
  x_t = noised(DDPM, i.x0, i.noise, i.t)
  return per_example(den.squared_error(epsilon_net(params(i, "sg"))(x_t, i.t, i.sg_cond), i.noise))


def rcm_denoise(parameters, x, angle, condition):
  a, b, w = (parameters[name] for name in "abW")
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  scale = 1 / (cos + sin)
  prediction = a * (scale * x) + jnp.tanh(scale * x @ w + b * sin * scale + condition)
  return scale * x - sin * scale * prediction


def rcm_noised(i, h):
  """The student's samples after backward simulation, and their noised copies at random angles."""
  wide = lambda angle: angle.reshape(-1, 1, 1, 1, 1)  # noqa: E731
  student = params(i, "student")
  angle, x = jnp.full((len(i.z_init), 1), jnp.pi / 2), i.z_init
  for k in range(h["n_steps"] - 1):
    x = jax.lax.stop_gradient(rcm_denoise(student, x, wide(angle), i.cond))
    if h["dmd_fix_timesteps"]:
      angle = jnp.full_like(angle, h["backward_timesteps"][k])
    else:
      angle = jnp.minimum(rcm_angle(i.u_steps[k]), angle)
    x = jnp.cos(wide(angle)) * x + jnp.sin(wide(angle)) * i.noise_steps[k]
  x = rcm_denoise(student, x, wide(angle), i.cond)
  angle = wide(rcm_angle(i.u_D))
  return x, jnp.cos(angle) * x + jnp.sin(angle) * i.noise_D, angle


def rcm_angle(u):
  return jnp.arctan(jnp.exp(1.6 * u))


def rcm_dmd(i, h):
  x, x_t, angle = rcm_noised(i, h)
  fake, cond, uncond = (
    rcm_denoise(params(i, n), x_t, angle, c)
    for n, c in (("fake", i.cond), ("teacher", i.cond), ("teacher", i.uncond))
  )
  real = guided(uncond, cond, h["teacher_guidance"]) if h["teacher_guidance"] > 1 else cond
  loss = scores.distribution_matching(x, *jax.lax.stop_gradient((real, fake)), floor=1e-5)
  return h["loss_scale_dmd"] * 2 * per_example(loss)


def rcm_critic(i, h):
  x, x_t, angle = jax.lax.stop_gradient(rcm_noised(i, h))
  denoised = rcm_denoise(params(i, "fake"), x_t, angle, i.cond)
  return per_example(den.squared_error(denoised, x, weight=jnp.sin(angle.ravel()) ** -2))


CASES = {
  "decoupled_dmd": decoupled,
  "diff_instruct_generator": diff_instruct,
  "disback_generator": dmd2_edm,
  "dmd2_edm_fake_loss": dmd2_edm_fake,
  "dmd2_edm_generator": dmd2_edm,
  "dmd2_sd_fake_loss": dmd2_sd_fake,
  "dmd2_sd_generator": dmd2_sd,
  "dmd_kl_grad": dmd_kl_grad,
  "fastgen_vsd_loss": fastgen_vsd,
  "rcm_critic_loss": rcm_critic,
  "rcm_dmd_loss": rcm_dmd,
  "sfd_fake_score": sfd_fake,
  "sfd_generator": sfd,
  "sid_fake_score": sid_fake,
  "sid_generator": sid,
  "sid_lsg_generator": lambda i, h: scores.sid(i.images, i.y_real, i.y_fake, alpha=h["alpha"]),
}
