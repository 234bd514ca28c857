"""Losses of discriminators and of the generators against them, on logits that are high for data.

The losses of one logit keep its shape; data and samples may differ in number, and a discriminator
with several heads has one more axis. A discriminator's loss is the one `real` function on data plus
the `fake` one on samples.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn import relu, softplus


def logistic_real(logits: jax.Array) -> jax.Array:
  """softplus(-logits) = -log sigmoid(logits), elementwise: to call them real.

  On samples it is the generator's non-saturating loss. Goodfellow et al., Generative Adversarial
  Networks (arXiv:1406.2661), section 3; so used in DMD2 (arXiv:2405.14867).
  """
  return softplus(-logits)


def logistic_fake(logits: jax.Array) -> jax.Array:
  """softplus(logits) = -log(1 - sigmoid(logits)), elementwise: to call them generated.

  At the optimum against `logistic_real` the logit is log p_data / p_generator, the ratio of
  f-distill, and the two losses add up to 2 log 2 - 2 JS.
  """
  return softplus(logits)


def hinge_real(logits: jax.Array) -> jax.Array:
  """max(0, 1 - logits), elementwise.

  Lim and Ye, Geometric GAN (arXiv:1705.02894); so used in Sauer et al., Adversarial Diffusion
  Distillation (ADD, arXiv:2311.17042) and Fast High-Resolution Image Synthesis with Latent
  Adversarial Diffusion Distillation (LADD, arXiv:2403.12015).
  """
  return relu(1 - logits)


def hinge_fake(logits: jax.Array) -> jax.Array:
  """max(0, 1 + logits), elementwise: see `hinge_real`."""
  return relu(1 + logits)


def hinge_generator(logits: jax.Array) -> jax.Array:
  """-logits, elementwise, of samples: the generator's loss against a hinge discriminator."""
  return -logits


def relativistic(higher: jax.Array, lower: jax.Array) -> jax.Array:
  """softplus(-(higher - lower)), elementwise: one pair's logit is to exceed the other's.

  The discriminator's loss is relativistic(data, samples), the generator's relativistic(samples,
  data). Jolicoeur-Martineau, The Relativistic Discriminator (arXiv:1807.00734).
  """
  return softplus(-(higher - lower))


def gradient_penalty(discriminator: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  """|grad_x D(x)|^2, the sum over an example's entries: [B].

  R1 on data, R2 on samples; the loss has gamma / 2 of it. Mescheder, Geiger, Nowozin, Which
  Training Methods for GANs do actually Converge? (arXiv:1801.04406).

  Args:
    discriminator: [B, ...] to logits [B] or [B, heads], which are summed; example i's logits depend
      on example i alone.
    x: [B, ...].
  """
  gradient = jax.grad(lambda x: jnp.sum(discriminator(x)))(x)
  return jnp.sum(jnp.square(gradient), axis=tuple(range(1, x.ndim)))


def perturbation_penalty(logits: jax.Array, perturbed_logits: jax.Array) -> jax.Array:
  """(D(x) - D(x + s z))^2, elementwise, z of N(0, I): about s^2 |grad D|^2 in the mean for small s.

  A penalty that needs no second derivative. Lin et al., Diffusion Adversarial Post-Training for
  One-Step Video Generation (arXiv:2501.08316).

  Args:
    logits, perturbed_logits: D at x and at its perturbed copy, of one shape. Gradients flow into
      both.
  """
  return jnp.square(logits - perturbed_logits)
