"""Calls for the golden values of metrics of samples and of averages of parameters."""

import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion import ema
from distill_jax.evals import distances


def kid(i, h):
  def subsets(features, index):
    return features[np.asarray(index).astype(int)]

  return distances.kid_of_subsets(subsets(i.feats2, i.idx2), subsets(i.feats1, i.idx1))


def averages(weight_of):
  """EMAs of the rows of params, the first being what they start from: [updates, ...]."""

  def call(i, h):
    batch, out, average = h["batch_size"], [], i.params[0]
    for j, params in enumerate(i.params[1:]):
      average = ema.ema_step(average, params, weight_of(i, h, (j + 1) * batch, batch))
      out.append(average)
    return jnp.stack(out)

  return call


def power_averages(i, h):
  """One for each std: [updates, stds, ...]."""
  return jnp.stack(
    [
      averages(lambda i, h, t, batch: ema.power_weight(t, exponent, interval=batch))(i, h)
      for exponent in ema.std_to_exponent(i.stds)
    ],
    axis=1,
  )


def traditional_weight(i, h, images, batch):
  half_life = h["halflife_Mimg"] * 1e6
  return ema.half_life_weight(images, half_life, interval=batch, ramp_up=h["rampup_ratio"])


def fastgen_ema_beta(i, h):
  images, batch = i.iteration * h["batch_size"], h["batch_size"]
  half_life = ema.half_life_weight(
    images, h["halflife_kimg"] * 1000, interval=batch, ramp_up=h["rampup"]
  )
  return jnp.stack([1 - ema.power_weight(i.iteration, h["gamma"]), 1 - half_life], axis=-1)


def edm2_lr(i, h):
  return jnp.stack(
    [
      ema.edm2_learning_rate(
        row[0], row[1], reference=row[2], decay_batches=row[3], ramp_up=row[4] * 1e6
      )
      for row in np.asarray(i.args).tolist()
    ]
  )


CASES = {
  "cmmd_mmd": lambda i, h: h["scale"] * distances.mmd(i.x, i.y, bandwidth=h["sigma"]),
  "edm2_exp_to_std": lambda i, h: ema.exponent_to_std(i.exp),
  "edm2_lr": edm2_lr,
  "edm2_posthoc_coefficients": lambda i, h: ema.posthoc_coefficients(
    i.in_ofs, i.in_std, i.out_ofs, i.out_std
  ),
  "edm2_power_beta": lambda i, h: (
    1 - ema.power_weight(i.t_next, ema.std_to_exponent(i.std), interval=i.t_delta)
  ),
  "edm2_power_ema": power_averages,
  "edm2_power_response": lambda i, h: ema.power_response(float(i.ofs), float(i.std), int(i.len)),
  "edm2_std_to_exp": lambda i, h: ema.std_to_exponent(i.std),
  "edm2_traditional_ema": averages(traditional_weight),
  "fastgen_ema_beta": fastgen_ema_beta,
  "fid_frechet": lambda i, h: distances.frechet_distance(
    jnp.atleast_1d(i.mu1), jnp.atleast_2d(i.sigma1), jnp.atleast_1d(i.mu2), jnp.atleast_2d(i.sigma2)
  ),
  "kid": kid,
  "prdc": lambda i, h: jnp.stack(distances.nearest_neighbours(i.real, i.fake, k=h["nearest_k"])),
  "sliced_wasserstein": lambda i, h: distances.sliced_wasserstein(
    i.x, i.y, i.projections, p=h["p"]
  ),
}
