"""The fake score: a network that learns, by denoising, the distribution that a generator makes, and
may carry a discriminator's head on its features."""

from typing import Any

import jax
import optax

from distill_jax.diffusion import network as network_lib
from distill_jax.diffusion import players
from distill_jax.diffusion.network import Network
from distill_jax.losses import adversarial, denoising
from distill_jax.method import Metrics, State
from distill_jax.models import heads


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


def init_with_head(
  config, network: Network, key: jax.Array, pretrained: dict[str, Any]
) -> dict[str, Any]:
  """Parameters of a fake score and of the head on its features: score, head."""
  score_key, head_key = jax.random.split(key)
  return dict(
    score=network_lib.params(config, "fake", score_key, pretrained),
    head=heads.init(head_key, network_lib.feature_width(network)),
  )


def follow_with_head(
  config,
  tx: optax.GradientTransformation,
  network: Network,
  state: State,
  batch: Any,
  key: jax.Array,
  *,
  weight: float,
  label_drop: float = 0.0,
) -> tuple[State, Metrics]:
  """`follow` of score and head: + weight (-log D(data_t) - log(1 - D(x_t))), D on the features.

  Args:
    config, tx, network, state, key, label_drop: as in `follow`.
    batch: `made`, and x, the data.
    weight: of the discriminator; at 0 the data is not looked at.
  """

  def loss(params, batch, key):
    key_made, key_drop, key_real = jax.random.split(key, 3)
    condition = players.drop(network, players.label_of(network, batch), key_drop, label_drop)

    def seen(key, x):
      x_t, sigma = players.noised(config, key, x)
      made, features = network_lib.denoise_with_features(
        network, params["score"], x_t, sigma, condition
      )
      return made, sigma, heads.apply(params["head"], features)

    denoised, sigma, logits = seen(key_made, batch["made"])
    error = denoising.edm(denoised, batch["made"], sigma, sigma_data=network.sigma_data)
    value = players.mean(error)
    if weight:
      told = adversarial.logistic_fake(logits)
      value += weight * (told + adversarial.logistic_real(seen(key_real, batch["x"])[2]))
    return players.total(value), {}

  batch = dict(batch, made=jax.lax.stop_gradient(batch["made"]))
  return players.move(config, tx, loss, state, batch, key, "fake")
