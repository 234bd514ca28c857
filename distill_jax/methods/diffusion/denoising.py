"""A diffusion model from data: the teacher, by EDM's weighting or by flow matching's.

  loss = w(sigma) |D(x + sigma eps, sigma, y) - x|^2 / d

The two are one objective in two weightings and two distributions of noise levels: EDM has
w = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 and log-normal sigma; flow matching at
t = sigma / (1 + sigma) has w = (1 + 1 / sigma)^2, the squared error of the velocity eps - x.
Labels are dropped at a rate, so that the model can be guided.

Paper: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models
  (arXiv:2206.00364), section 5.
Paper: Lipman et al., Flow Matching for Generative Modeling (arXiv:2210.02747), eq. 23.
"""

import jax

from distill_jax import optim
from distill_jax.diffusion import network as network_lib
from distill_jax.diffusion import players
from distill_jax.losses import denoising
from distill_jax.method import Method


def make(config) -> Method:
  network = network_lib.make(config, "student")
  tx = optim.make(config.optim, config.steps)
  weight_of = dict(edm=denoising.edm_weight, flow=flow_weight)[config.method.weight]

  def init(key, pretrained):
    return players.start(config, key, pretrained, tx, teacher=False)

  def step(state, frozen, batch, key):
    def loss(params, batch, key):
      key_noise, key_drop = jax.random.split(key)
      noised, sigma = players.noised(config, key_noise, batch["x"])
      condition = players.label_of(network, batch)
      condition = players.drop(network, condition, key_drop, config.method.label_drop)
      denoised = network_lib.denoise(network, params, noised, sigma, condition)
      weight = weight_of(sigma, sigma_data=network.sigma_data)
      error = denoising.squared_error(denoised, batch["x"], weight=weight)
      return players.total(players.mean(error)), {}

    state, metrics = players.move(config, tx, loss, state, batch, key)
    return dict(state, step=state["step"] + 1), metrics

  return Method(init, step)


def flow_weight(sigma: jax.Array, *, sigma_data: float) -> jax.Array:
  """(1 + 1 / sigma)^2: eps - x is off by that factor times what x0 is off by."""
  return (1 + 1 / sigma) ** 2
