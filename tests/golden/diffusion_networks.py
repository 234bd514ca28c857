"""The tiny networks of the golden cases, each the formula that its `meta` states."""

import jax.numpy as jnp


def expand(t, x):
  return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def params(i, name):
  """The arrays `name`_a, `name`_b, ... of a case."""
  return {key[len(name) + 1 :]: v for key, v in vars(i).items() if key.startswith(f"{name}_")}


def noise_net(p):
  """F(x, c) = a x + tanh(x W + b c)."""
  return lambda x, s: p["a"] * x + jnp.tanh(x @ p["W"] + p["b"] * expand(s, x))


def denoiser(p):
  """D(x, s) = a x / (1 + s^2) + tanh(x W + b log s)."""

  def apply(x, s):
    s = expand(s, x)
    return p["a"] * x / (1 + s**2) + jnp.tanh(x @ p["W"] + p["b"] * jnp.log(s))

  return apply


def velocity_net(p):
  """V(x, t) = a x cos t + tanh(x W + b t)."""

  def apply(x, t):
    t = expand(t, x)
    return p["a"] * x * jnp.cos(t) + jnp.tanh(x @ p["W"] + p["b"] * t)

  return apply


def average_net(p, shift=0.0):
  """U(x, t, r) = a x cos t + tanh(x W + b t + c (t - r) + shift)."""

  def apply(x, t, r):
    h, t = expand(t - r, x), expand(t, x)
    return p["a"] * x * jnp.cos(t) + jnp.tanh(x @ p["W"] + p["b"] * t + p["c"] * h + shift)

  return apply


def epsilon_net(p):
  """eps(x, t, e) = a x + tanh(x W + b t / 1000 + e)."""

  def apply(x, t, e):
    return p["a"] * x + jnp.tanh(x @ p["W"] + p["b"] * expand(t, x) / 1000 + expand(e, x))

  return apply
