"""Calls for the golden values of discriminators, MMD, preferences and plain denoising."""

import jax.numpy as jnp
from diffusion_matching_cases import training_sigma
from diffusion_networks import denoiser, params
from diffusion_noise_cases import STABLE

from distill_jax.losses import adversarial as adv
from distill_jax.losses import denoising as den
from distill_jax.losses import diffusion_preference as pref
from distill_jax.losses import f_divergence as fd
from distill_jax.losses import mmd


def mean_of_example(x):
  return jnp.mean(x, axis=tuple(range(1, x.ndim)))


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
  if "VPLoss" in i.source:
    t = 1 + i.u * (1e-5 - 1)
    sigma = jnp.sqrt(jnp.expm1(0.5 * 19.9 * t**2 + 0.1 * t))
  elif "VELoss" in i.source:
    sigma = 0.02 * (100 / 0.02) ** i.u
  else:
    sigma = training_sigma(i)
  x_t = i.images + den.expand(sigma, i.images) * i.noise
  denoised = denoiser(params(i, "net"))(x_t, sigma)
  if "EDMLoss" in i.source:
    return den.edm(denoised, i.images, sigma)
  return den.squared_error(denoised, i.images, weight=sigma**-2)


def edm2_loss(i, h):
  sigma = training_sigma(i, -0.4, 1.0)
  x_t = i.images + den.expand(sigma, i.images) * i.noise
  return den.edm(
    denoiser(params(i, "net"))(x_t, sigma), i.images, sigma, log_variance=i.logvar.ravel()
  )


def plain_regression(i, h):
  alpha, sigma = {
    "edm": lambda t: (jnp.ones_like(t), t),
    "rf": lambda t: (1 - t, t),
    "trig": lambda t: (jnp.cos(t), jnp.sin(t)),
    "sd": lambda t: (STABLE.alpha(1000 * t), STABLE.sigma(1000 * t)),
  }[h["schedule"]](i.t)
  alpha, sigma = den.expand(alpha, i.x0), den.expand(sigma, i.x0)
  target = {
    "x0": i.x0,
    "eps": i.noise,
    "v": alpha * i.noise - sigma * i.x0,
    "flow": i.noise - i.x0,
  }[h["pred_type"]]
  return jnp.mean(den.squared_error(i.pred, target))


CASES = {
  "diffusion_dpo": dpo,
  "dmd2_gan_generator": generator,
  "dmd2_gan_guidance": discriminator,
  "edm2_loss": edm2_loss,
  "edm_loss": training_loss,
  "fastgen_dsm": plain_regression,
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
}
