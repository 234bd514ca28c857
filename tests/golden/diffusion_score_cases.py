"""Calls for the golden values of score distillation, adversarial and preference losses.

The toy networks are those of the files' formulas; what a loss is of their outputs is ours.
"""

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion.schedules import Schedule, convert, guided, karras_sigma, noised
from distill_jax.losses import adversarial as adv
from distill_jax.losses import denoising as den
from distill_jax.losses import diffusion_preference as pref
from distill_jax.losses import f_divergence as fd
from distill_jax.losses import mmd, scores


def table(cumulative):
  """The schedule of a table of alpha^2, its time the index."""
  cumulative = np.asarray(cumulative)
  steps = lambda t: jnp.asarray(t).astype(int)  # noqa: E731
  alpha = lambda t: jnp.asarray(np.sqrt(cumulative))[steps(t)]  # noqa: E731
  sigma = lambda t: jnp.asarray(np.sqrt(1 - cumulative))[steps(t)]  # noqa: E731
  return Schedule(alpha, sigma, jnp.asarray, 0.0, len(cumulative) - 1.0)


STABLE = table(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))
DDPM = table(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
EDM = Schedule(jnp.ones_like, lambda t: t, lambda ratio: ratio, 0.002, 80.0)


def network(i, name):
  """(a, b, W) of a toy network."""
  return tuple(getattr(i, f"{name}_{p}") for p in "abW")


def edm_net(parameters, x, sigma):
  a, b, w = parameters
  sigma = den.expand(sigma, x)
  return a * x / (1 + sigma**2) + jnp.tanh(x @ w + b * jnp.log(sigma))


def eps_net(parameters, x, t, condition):
  a, b, w = parameters
  return a * x + jnp.tanh(x @ w + b * den.expand(t, x) / 1000 + den.expand(condition, x))


def eps_to_x0(eps, x_t, t, schedule=STABLE):
  return convert(eps, x_t, t, schedule, "epsilon", "x0")


def gradient(loss, x):
  """The gradient in x that a loss passes, entry by entry."""
  return jax.grad(lambda x: jnp.sum(loss(x)))(x)


def per_example(x):
  return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def mean_of_example(x):
  return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def weight(t, name):
  return scores.noise_weight(STABLE.alpha(t), STABLE.sigma(t), name=name)


def training_sigma(i, mean=-1.2, std=1.2):
  return jnp.exp(std * i.u + mean)


def dmd2_edm(i, h):
  x_t = i.latents + den.expand(i.sigma, i.latents) * i.noise
  if h.get("mode") == "zerodiv":  # both networks know x
    real = fake = i.latents
  else:
    real, fake = (edm_net(network(i, n), x_t, i.sigma) for n in ("real", "fake"))
  real, fake = jax.lax.stop_gradient((real, fake))
  return with_gradient(lambda x: scores.distribution_matching(x, real, fake), i.latents)


def with_gradient(loss, x):
  return {"out": jnp.mean(loss(x)), "out_grad": gradient(loss, x)}


def dmd2_edm_fake(i, h):
  x_t = i.latents + den.expand(i.sigma, i.latents) * i.noise
  denoised = edm_net(network(i, "fake"), x_t, i.sigma)
  return jnp.mean(den.edm(denoised, i.latents, i.sigma, sigma_data=h["sigma_data"]))


def guided_eps(parameters, x_t, t, i, scale):
  """DMD2 guides only above 1."""
  eps = eps_net(parameters, x_t, t, i.text)
  if scale <= 1:
    return eps
  return guided(eps_net(parameters, x_t, t, i.uncond), eps, scale)


def dmd2_sd(i, h):
  x_t = noised(STABLE, i.latents, i.noise, i.t)
  real, fake = (
    eps_to_x0(guided_eps(network(i, n), x_t, i.t, i, h[f"{n}_guidance_scale"]), x_t, i.t)
    for n in ("real", "fake")
  )
  real, fake = jax.lax.stop_gradient((real, fake))
  return with_gradient(lambda x: scores.distribution_matching(x, real, fake), i.latents)


def dmd2_sd_fake(i, h):
  x_t = noised(STABLE, i.latents, i.noise, i.t)
  return jnp.mean(den.squared_error(eps_net(network(i, "fake"), x_t, i.t, i.text), i.noise))


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
  real, fake = (edm_net(network(i, n), x_t, sigma) for n in ("data", "gen"))
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
  real, fake = (edm_net(network(i, n), x_t, sigma) for n in ("real", "fake"))
  if h.get("mode") == "nan":
    fake = fake.at[(0,) * fake.ndim].set(jnp.nan)
  loss = scores.sid(i.images, real, fake, alpha=h["alpha"])
  return loss[1:] if h.get("mode") == "nan" else loss  # ours is 0 where theirs has no row


def sid_fake(i, h):
  sigma = training_sigma(i, h["P_mean"], h["P_std"])
  x_t = i.images + den.expand(sigma, i.images) * i.noise
  denoised = edm_net(network(i, "fake"), x_t, sigma)
  return den.edm(denoised, i.images, sigma, sigma_data=h["sigma_data"])


def sfd(i, h):
  x_t = noised(DDPM, i.x0, i.noise, i.t)
  real, fake = (
    eps_to_x0(eps_net(network(i, n), x_t, i.t, condition), x_t, i.t, DDPM)
    for n, condition in (("p", i.p_cond), ("sg", i.sg_cond))
  )
  alpha = h["alpha"]
  if h["use_diffinst"]:
    (real, fake), alpha = jax.lax.stop_gradient((real, fake)), 1.0
  return per_example(scores.sid(i.x0, real, fake, alpha=alpha))


def sfd_fake(i, h):
  x_t = noised(DDPM, i.x0, i.noise, i.t)
  return per_example(den.squared_error(eps_net(network(i, "sg"), x_t, i.t, i.sg_cond), i.noise))


def sds(i, h):
  """The guidance scale counts from 0, except with Perp-Neg."""
  x_t, parameters = noised(STABLE, i.latents, i.noise, i.t), network(i, "net")
  text, uncond = (eps_net(parameters, x_t, i.t, c) for c in (i.text, i.uncond))
  scale = h["guidance_scale"]
  if h["perp_neg"]:
    negatives = negative_eps(i, parameters, x_t)
    eps = scores.perp_neg(uncond, text, negatives, i.neg_weights.T, scale=scale)
  else:
    eps = guided(uncond, text, 1 + scale)
  w = weight(i.t, h["weighting"])
  loss = lambda x: scores.noise_difference(x, eps, i.noise, weight=w)  # noqa: E731
  grad, n = gradient(loss, i.latents), len(i.latents)
  return {"out": grad, "out_loss": jnp.sum(loss(i.latents)) / n, "out_latents_grad": grad / n}


def negative_eps(i, parameters, x_t):
  """[N, B, ...]; threestudio's prompts run negative by negative and its latents image by image, so
  most negatives are asked of another image."""
  prompts = [getattr(i, n) for n in sorted(vars(i)) if n[:3] == "neg" and n[3:].isdigit()]
  n = len(prompts)
  x, t = jnp.concatenate([x_t] * n), jnp.concatenate([i.t] * n)
  eps = eps_net(parameters, x, t, jnp.stack(prompts, axis=1).ravel())
  return jnp.stack([eps[k::n] for k in range(n)])


def vsd(i, h):
  x_t = noised(STABLE, i.latents, i.noise, i.t)
  pre, lora = network(i, "pre"), network(i, "lora")
  teacher = guided(*(eps_net(pre, x_t, i.t, c) for c in (i.uncond, i.text)), h["guidance_scale"])
  particle, marginal = (eps_net(lora, x_t, i.t, c) for c in (i.text + i.camera, i.text))
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
    covariance = alpha[:, None, None] ** 2 * (root @ root.T) + sigma[:, None, None] ** 2 * jnp.eye(
      2
    )
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
  return jnp.mean(den.squared_error(i.lora_eps, i.noise, weight=STABLE.alpha(i.t) ** 2))


def rcm_denoise(parameters, x, angle, condition):
  a, b, w = parameters
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  scale = 1 / (cos + sin)
  prediction = a * (scale * x) + jnp.tanh(scale * x @ w + b * sin * scale + condition)
  return scale * x - sin * scale * prediction


def rcm_noised(i, h):
  """The student's samples after backward simulation, and their noised copies at random angles."""
  wide = lambda angle: angle.reshape(-1, 1, 1, 1, 1)  # noqa: E731
  student = network(i, "student")
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
    rcm_denoise(network(i, n), x_t, angle, c)
    for n, c in (("fake", i.cond), ("teacher", i.cond), ("teacher", i.uncond))
  )
  real = guided(uncond, cond, h["teacher_guidance"]) if h["teacher_guidance"] > 1 else cond
  loss = scores.distribution_matching(x, *jax.lax.stop_gradient((real, fake)), floor=1e-5)
  return h["loss_scale_dmd"] * 2 * per_example(loss)


def rcm_critic(i, h):
  x, x_t, angle = jax.lax.stop_gradient(rcm_noised(i, h))
  denoised = rcm_denoise(network(i, "fake"), x_t, angle, i.cond)
  return per_example(den.squared_error(denoised, x, weight=jnp.sin(angle.ravel()) ** -2))


F_DIVERGENCES = {
  "rkl": "reverse_kl",
  "kl": "forward_kl",
  "js": "js",
  "sf": "softened_reverse_kl",
  "neyman": "neyman",
  "sh": "squared_hellinger",
  "jf": "jeffreys",
}


def f_weight(ratio, h):
  return fd.weight(ratio, divergence=F_DIVERGENCES[h["f_div"]], constants=False)


def f_distill_weight(i, h):
  ratio = fd.density_ratio(i.fake_logits, lower=h["ratio_lower"], upper=h["ratio_upper"])
  out = {}
  if h["ratio_normalization"]:
    ratio, out["out_bins"] = fd.normalize_by_level(
      ratio, i.t, i.bins, decay=h["ratio_ema_rate"], t_min=h["min_t"], t_max=h["max_t"]
    )
  return out | {"out": fd.batch_normalize(f_weight(ratio, h))}


def discriminator(i, h):
  return jnp.mean(adv.logistic_real(i.real_logits)) + jnp.mean(adv.logistic_fake(i.fake_logits))


def generator(i, h):
  return jnp.mean(adv.logistic_real(i.fake_logits))


def hinge_discriminator(i, h):
  return (jnp.mean(adv.hinge_real(i.real_logits)) + jnp.mean(adv.hinge_fake(i.fake_logits))) / 2


def phased(i, h):
  found = den.subinterval(i.x_s, i.noise, i.s, i.t)
  return {
    "out": mean_of_example(den.squared_error(i.v_pred, found.flow)),
    "out_x_t": found.x_t,
    "out_target": found.flow,
    "out_weight": found.weight,
  }


def rbf_mmd(i, h):
  bandwidths = [w * h["sigma"] for w in h["bandwidth_multipliers"]]
  return {
    "out": mmd.rbf_mmd(i.x, i.y, bandwidths=bandwidths),
    "out_unbiased": mmd.rbf_mmd(i.x, i.y, bandwidths=bandwidths, unbiased=True),
    "out_linear": mmd.linear_mmd(i.x, i.y),
  }


def dpo(i, h):
  model, reference = (
    jnp.split(mean_of_example(den.squared_error(p, i.target)), 2)
    for p in (i.model_pred, i.ref_pred)
  )
  beta = h["beta_dpo"] / 2
  losses = pref.diffusion_dpo(*model, *reference, beta=beta)
  preferred = losses < jnp.log(2)
  return {"out": jnp.mean(losses), "out_implicit_acc": jnp.mean(preferred)}


def pso_offline(i, h):
  reference = i.noisy - den.expand(i.sigmas, i.noisy) * i.ref_output
  model, reference = (
    jnp.split(mean_of_example(den.squared_error(p, i.target, weight=i.sigmas**-2)), 2)
    for p in (i.model_pred_x0, reference)
  )
  settings = {"beta": h["beta_pso"], "rejected_weight": h["neg_defactor"]}
  if h["loss_type"] == "pso":
    losses = pref.pso(*model, *reference, **settings)
  else:
    losses = pref.pso_hinge(*model, **settings)
  return jnp.mean(losses) + h["prior_loss_weight"] * jnp.mean(model[1])


def pso_online(i, h):
  log_probs, reference = (
    jnp.stack(pair, axis=-1) for pair in ((i.logp_0, i.logp_1), (i.ref_logp_0, i.ref_logp_1))
  )
  return jnp.mean(pref.pso_online(log_probs, reference, i.prefer, beta=h["beta"], clip=h["eps"]))


def pso_log_prob(i, h):
  step = jnp.asarray(i.step).astype(int)
  sigma, following = i.sigmas[step], i.sigmas[step + 1]
  return pref.euler_ancestral_log_prob(i.model_output, i.sample, i.prev_sample, sigma, following)


def training_loss(i, h):
  """EDM's three losses; the variance-exploding and -preserving ones weigh by 1 / sigma^2."""
  if "VPLoss" in h["source"]:
    t = 1 + i.u * (1e-5 - 1)
    sigma = jnp.sqrt(jnp.expm1(0.5 * 19.9 * t**2 + 0.1 * t))
  elif "VELoss" in h["source"]:
    sigma = 0.02 * (100 / 0.02) ** i.u
  else:
    sigma = training_sigma(i)
  denoised = edm_net(network(i, "net"), i.images + den.expand(sigma, i.images) * i.noise, sigma)
  if "EDMLoss" in h["source"]:
    return den.edm(denoised, i.images, sigma)
  return den.squared_error(denoised, i.images, weight=sigma**-2)


def edm2_loss(i, h):
  sigma = training_sigma(i, -0.4, 1.0)
  x_t = i.images + den.expand(sigma, i.images) * i.noise
  return den.edm(
    edm_net(network(i, "net"), x_t, sigma), i.images, sigma, log_variance=i.logvar.ravel()
  )


def plain_regression(i, h):
  schedule = {
    "edm": EDM,
    "rf": Schedule(lambda t: 1 - t, lambda t: t, jnp.asarray, 0.0, 1.0),
    "trig": Schedule(jnp.cos, jnp.sin, jnp.asarray, 0.0, 1.0),
    "sd": Schedule(
      lambda t: STABLE.alpha(1000 * t), lambda t: STABLE.sigma(1000 * t), jnp.asarray, 0.0, 1.0
    ),
  }[h["schedule"]]
  alpha, sigma = (den.expand(f(i.t), i.x0) for f in (schedule.alpha, schedule.sigma))
  target = {
    "x0": i.x0,
    "eps": i.noise,
    "v": alpha * i.noise - sigma * i.x0,
    "flow": i.noise - i.x0,
  }[h["pred_type"]]
  return jnp.mean(den.squared_error(i.pred, target))


CASES = {
  "asd_grad": asd,
  "asd_t_plus": lambda i, h: scores.asynchronous_time(
    i.t, ratio=h["plus_ratio"], min_step=h["min_step"]
  ),
  "decoupled_dmd": decoupled,
  "diff_instruct_generator": diff_instruct,
  "diffusion_dpo": dpo,
  "disback_generator": dmd2_edm,
  "dmd2_edm_fake_loss": dmd2_edm_fake,
  "dmd2_edm_generator": dmd2_edm,
  "dmd2_gan_generator": generator,
  "dmd2_gan_guidance": discriminator,
  "dmd2_sd_fake_loss": dmd2_sd_fake,
  "dmd2_sd_generator": dmd2_sd,
  "dmd_kl_grad": dmd_kl_grad,
  "edm2_loss": edm2_loss,
  "edm_loss": training_loss,
  "esd_gaussian": esd_gaussian,
  "fastgen_dsm": plain_regression,
  "fastgen_vsd_loss": fastgen_vsd,
  "fdistill_h": lambda i, h: f_weight(i.r, h),
  "fdistill_weight": f_distill_weight,
  "gan_disc_softplus": discriminator,
  "gan_gen_softplus": generator,
  "ladd_hinge_d": hinge_discriminator,
  "mmd_rbf": rbf_mmd,
  "phased_dmd_subinterval": phased,
  "pso_euler_ancestral_logprob": pso_log_prob,
  "pso_offline": pso_offline,
  "pso_online": pso_online,
  "rcm_critic_loss": rcm_critic,
  "rcm_dmd_loss": rcm_dmd,
  "sds_grad": sds,
  "sfd_fake_score": sfd_fake,
  "sfd_generator": sfd,
  "sid_fake_score": sid_fake,
  "sid_generator": sid,
  "sid_lsg_generator": lambda i, h: scores.sid(i.images, i.y_real, i.y_fake, alpha=h["alpha"]),
  "swiftbrush_lora": swiftbrush_lora,
  "swiftbrush_vsd": swiftbrush,
  "vsd_grad": vsd,
}
