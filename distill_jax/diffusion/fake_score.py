"""The fake score: a network that learns, by denoising, the distribution that a generator makes."""

from typing import Any

import jax
import optax

from distill_jax.diffusion import network as network_lib
from distill_jax.diffusion import players
from distill_jax.diffusion.network import Network
from distill_jax.losses import denoising
from distill_jax.method import Metrics, State


def follow(
  config,
  tx: optax.GradientTransformation,
  network: Network,
  state: State,
  batch: Any,
  key: jax.Array,
  *,
  label_drop: float = 0.0,
) -> tuple[State, Metrics]:
  """One move of `state["fake"]` on lambda(sigma) |f(x + sigma eps, sigma, y) - x|^2, EDM's weight.

  Args:
    config: noise, microbatches.
    tx: the fake score's optimiser.
    network: the fake score's.
    state: of the method.
    batch: `made`, generated images [B, ...], and label [B] where there are classes.
    key: of noise and dropped labels.
    label_drop: share of labels that become the null label, for a score that is to be guided.
  """

  def loss(params, batch, key):
    key_noise, key_drop = jax.random.split(key)
    x_t, sigma = players.noised(config, key_noise, batch["made"])
    condition = players.drop(network, players.label_of(network, batch), key_drop, label_drop)
    denoised = network_lib.denoise(network, params, x_t, sigma, condition)
    error = denoising.edm(denoised, batch["made"], sigma, sigma_data=network.sigma_data)
    return players.total(players.mean(error)), {}

  batch = dict(batch, made=jax.lax.stop_gradient(batch["made"]))
  return players.move(config, tx, loss, state, batch, key, "fake")
