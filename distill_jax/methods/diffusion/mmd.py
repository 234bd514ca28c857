"""One-step generation by matching embeddings: no score network follows, nothing is adversarial.

  x = G(z, y),  e_r = features of a network with random weights r
  loss = mean over r of MMD^2({e_r(x_i, y_i)}, {e_r(real_j, y_j)})

with the kernel sum_h exp(-|e - e'|^2 / (2 h^2 d)), d the number of features. New random networks
are drawn at every step, `networks` of them, of config.models.fake; they hear of the label,
so what is matched is the joint distribution. Real examples are the batch's, or with
`teacher_steps` the teacher's Heun samples of fresh noise and the batch's labels: no data then.

The distance: Gretton et al., A Kernel Two-Sample Test, Journal of Machine Learning Research, 2012.
Paper: Zhao and Bilen, Dataset Condensation with Distribution Matching (arXiv:2110.04181), for the
  random networks, there with the linear kernel.
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.diffusion import network as network_lib
from distill_jax.diffusion import players, samplers
from distill_jax.diffusion.schedules import karras_sigmas
from distill_jax.losses import mmd
from distill_jax.method import Method


def make(config) -> Method:
  names = ("student", "teacher", "fake")
  student, teacher, embedder = (network_lib.make(config, name) for name in names)
  tx = optim.make(config.optim, config.steps)
  method, sigma_max = config.method, config.sampler.sigmas[0]

  def init(key, pretrained):
    return players.start(config, key, pretrained, tx)

  def solve(params, z, condition):
    def denoise(x, sigma):
      return network_lib.denoise(teacher, params, x, sigma, condition)

    levels = karras_sigmas(method.teacher_steps, config.noise.sigma_min, sigma_max)
    return samplers.heun(denoise, sigma_max * z, levels)

  def embed(params, x, condition):
    """[B, d]: the mean over places of the features of a clean image, in units of their number."""
    angle = jnp.zeros(len(x), x.dtype)
    _, features = embedder.raw(params, x / embedder.sigma_data, angle, condition)
    return jnp.mean(features, axis=1) / features.shape[-1] ** 0.5

  def step(state, frozen, batch, key):
    def loss(params, batch, key):
      key_z, key_real, key_networks = jax.random.split(key, 3)
      condition = players.label_of(student, batch)
      z = jax.random.normal(key_z, batch["x"].shape)
      x, real = network_lib.generate(student, params, z, sigma_max, condition), batch["x"]
      if method.teacher_steps:
        z = jax.random.normal(key_real, real.shape)
        real = jax.lax.stop_gradient(solve(frozen["teacher"], z, condition))

      def distance(key):
        weights = embedder.init(key)
        of_made, of_real = (embed(weights, a, condition) for a in (x, real))
        return mmd.rbf_mmd(of_made, of_real, bandwidths=method.bandwidths, unbiased=True)

      keys = jax.random.split(key_networks, method.networks)
      value = jnp.mean(jax.lax.map(distance, keys))
      count = jnp.float32(len(x))
      return (value * count, count), {}

    state, metrics = players.move(config, tx, loss, state, batch, key)
    return dict(state, step=state["step"] + 1), metrics

  return Method(init, step)
