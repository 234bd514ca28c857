"""Which times consistency and flow-map methods train on, and how that changes with the step.

Functions of `step` take a number or a traced integer scalar.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import erf

from distill_jax.diffusion.schedules import karras_sigma


def cm_scales(step: jax.Array, *, steps: int, start: int, end: int) -> jax.Array:
  """N(k) = ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 noise levels, int.

  Song, Dhariwal, Chen, Sutskever, Consistency Models (arXiv:2303.01469); K `steps`, s0
  `start`, s1 `end`.
  """
  square = (jnp.asarray(step) / steps) * ((end + 1) ** 2 - start**2) + start**2
  return jnp.maximum(jnp.ceil(jnp.sqrt(square) - 1).astype(int), 1) + 1


def cm_target_ema(scales: jax.Array, *, start: int, start_ema: float) -> jax.Array:
  """mu(k) = exp(s0 log mu0 / (N(k) - 1)), N(k) from `cm_scales`: the decay of the target's EMA.

  Song et al. (arXiv:2303.01469), in the form of the authors' code.
  """
  return jnp.exp(start * math.log(start_ema) / (scales - 1))


def progressive_scales(step: jax.Array, *, steps_per_stage: int, start: int) -> jax.Array:
  """Steps that the student takes: halved every `steps_per_stage`, twice as long at 2 and at 1.

  The schedule of progressive distillation in the code of Song et al. (arXiv:2303.01469). int.
  """
  step = jnp.asarray(step).astype(int)
  stage = jnp.minimum(step // steps_per_stage, start.bit_length())
  last = math.ceil(steps_per_stage * (math.log2(start) + 1))
  scales = jnp.maximum(start >> stage, 2)
  return jnp.where((scales == 2) & (step >= last), 1, scales)


def cm_weight(sigma: jax.Array, weight: str, *, sigma_data: float = 0.5) -> jax.Array:
  """Weights of the consistency loss by noise level, S = 1 / sigma^2: like sigma.

  "uniform" 1, "snr" S, "snr_plus_one" S + 1, "karras" S + 1 / sigma_data^2, "truncated_snr"
  max(S, 1). The code of Song et al. (arXiv:2303.01469).

  Raises:
    ValueError: there is no such weight.
  """
  snr = sigma**-2.0
  match weight:
    case "uniform":
      return jnp.ones_like(snr)
    case "snr":
      return snr
    case "snr_plus_one":
      return snr + 1
    case "karras":
      return snr + 1 / sigma_data**2
    case "truncated_snr":
      return jnp.maximum(snr, 1.0)
  raise ValueError(f"no weight {weight!r}: uniform, snr, snr_plus_one, karras, truncated_snr")


def ict_scales(step: jax.Array, *, steps: int, start: int = 10, end: int = 1280) -> jax.Array:
  """N(k) = min(s0 2^floor(k / K'), s1) + 1 noise levels, K' = floor(K / (log2 floor(s1 / s0) + 1)).

  Song and Dhariwal, Improved Techniques for Training Consistency Models (arXiv:2310.14189),
  Table 1. int.
  """
  period = math.floor(steps / (math.log2(end // start) + 1))
  doublings = jnp.minimum(jnp.asarray(step).astype(int) // period, math.ceil(math.log2(end)))
  return jnp.minimum(start * 2**doublings, end) + 1


def ascending_sigmas(
  n: jax.Array,
  size: int,
  *,
  sigma_min: float = 0.002,
  sigma_max: float = 80.0,
  rho: float = 7.0,
) -> jax.Array:
  """sigma_1 < ... < sigma_n of the Karras grid, then sigma_max up to the length `size`: [size].

  `n` may be traced; the intervals beyond it have no width and, in `ict_probabilities`, no mass.
  """
  u = jnp.minimum(jnp.arange(size) / (jnp.asarray(n) - 1), 1.0)
  return karras_sigma(1 - u, sigma_min, sigma_max, rho)


def ict_probabilities(sigmas: jax.Array, *, mean: float = -1.1, std: float = 2.0) -> jax.Array:
  """p(i) ~ erf((log sigma_{i+1} - m) / (sqrt2 s)) - erf((log sigma_i - m) / (sqrt2 s)): [N - 1].

  The discretised log-normal from which the index of (sigma_i, sigma_{i+1}) is drawn: Song and
  Dhariwal (arXiv:2310.14189), Table 1.

  Args:
    sigmas: [N], ascending.
  """
  mass = jnp.diff(erf((jnp.log(sigmas) - mean) / (math.sqrt(2) * std)))
  return mass / jnp.sum(mass)


def ict_weights(sigmas: jax.Array) -> jax.Array:
  """lambda_i = 1 / (sigma_{i+1} - sigma_i): [N] -> [N - 1]. Song and Dhariwal, Table 1."""
  return 1 / jnp.diff(sigmas)


def ect_gap(stage: jax.Array, *, q: float = 2.0, smallest: float = 0.0) -> jax.Array:
  """max(q^-(stage + 1), smallest): 1 minus the ratio r / t that `ect_r` aims at in a stage.

  Geng et al., Consistency Models Made Easy (arXiv:2406.14548); FastGen stops at 0.001.
  """
  return jnp.maximum(q ** -(jnp.asarray(stage, float) + 1), smallest)


def ect_stage(step: jax.Array, *, batch: int, kimg: int) -> jax.Array:
  """floor(step batch / (1000 kimg)), exactly: stages last `kimg` thousand examples. int."""
  examples = 1000 * kimg
  common = math.gcd(batch, examples)
  return jnp.asarray(step).astype(int) * (batch // common) // (examples // common)


def ect_r(
  t: jax.Array, gap: jax.Array, *, k: float = 8.0, b: float = 1.0, minimum: float = 0.0
) -> jax.Array:
  """r = max(t (1 - gap (1 + k sigmoid(-b t))), minimum), the cleaner level of a pair: like t.

  Geng et al. (arXiv:2406.14548), whose code calls it the sigmoid mapping; k = 0 is its constant
  one. At the first stages r = 0 over most of the range: the target is the data, as in diffusion.

  Args:
    t: [...], noise levels.
    gap: `ect_gap`, broadcasts to t.
  """
  return jnp.maximum(t * (1 - gap * (1 + k * jax.nn.sigmoid(-b * t))), minimum)


def tangent_warmup(step: jax.Array, steps: int) -> jax.Array:
  """min(1, step / steps), the r of `continuous_consistency.scm_tangent`; 1 where steps = 0.

  Lu and Song, Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models
  (arXiv:2410.11081).
  """
  return jnp.minimum(1.0, jnp.asarray(step, float) / steps) if steps else jnp.ones(())


def shortcut_levels(count: int, levels: int) -> jax.Array:
  """Of each bootstrapped example the k of its step size 2^-k: int [count].

  From `levels` - 1 down to 0 in equal blocks, what is left over at 0; the base steps are of size
  2^-levels. Frans et al., One Step Diffusion via Shortcut Models (arXiv:2410.12557), in the form of
  the authors' code.
  """
  blocks = jnp.repeat(jnp.arange(levels - 1, -1, -1), count // levels)
  return jnp.pad(blocks, (0, count - blocks.size))


def shortcut_levels_biased(count: int, levels: int) -> jax.Array:
  """As `shortcut_levels`, with a quarter each at k = 1 and k = 0, the one-step end: int [count].

  An option of the authors' code.
  """
  blocks = jnp.repeat(jnp.arange(levels - 1, 1, -1), count // 2 // levels)
  ones = jnp.ones(count // 4, blocks.dtype)
  return jnp.pad(jnp.concatenate([blocks, ones]), (0, count - blocks.size - ones.size))


def u_shaped_density(t: jax.Array, *, a: float = 4.0) -> jax.Array:
  """p(t) = (e(t) + e(1 - t)) / 2 on [0, 1], e `exponential_density`: like t.

  Lee, Lin, Fanti, Improving the Training of Rectified Flows (2-RF++, arXiv:2405.20320), the times
  of training: mostly near both ends.
  """
  return (exponential_density(t, a=a) + exponential_density(1 - t, a=a)) / 2


def exponential_density(t: jax.Array, *, a: float = 4.0) -> jax.Array:
  """a e^(a t) / (e^a - 1) on [0, 1]."""
  return a / math.expm1(a) * jnp.exp(a * t)


def u_shaped_times(
  key: jax.Array, count: int, *, a: float = 4.0, smallest: float = 1e-5
) -> jax.Array:
  """Draws of `u_shaped_density`, scaled to [smallest, 1 - smallest]: [count]."""
  first, second = jax.random.split(key)
  t = jnp.log1p(jax.random.uniform(first, (count,)) * math.expm1(a)) / a
  t = jnp.where(jax.random.bernoulli(second, shape=(count,)), t, 1 - t)
  return smallest + (1 - 2 * smallest) * t


def ddim_timesteps(count: int, total: int = 1000) -> jax.Array:
  """The grid of LCM's solver, (1, ..., count) (total // count) - 1, ascending: int [count]."""
  return jnp.arange(1, count + 1) * (total // count) - 1


def ddim_grid(alphas_cumprod: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """alpha^2 at `ddim_timesteps` and at `previous_timesteps`: [count] each.

  Luo et al., Latent Consistency Models (arXiv:2310.04378), in the form of the authors' code.
  """
  timesteps = ddim_timesteps(count, len(alphas_cumprod))
  return alphas_cumprod[timesteps], alphas_cumprod[previous_timesteps(count, len(alphas_cumprod))]


def previous_timesteps(count: int, total: int = 1000) -> jax.Array:
  """The grid of `ddim_timesteps` one step cleaner, beginning at timestep 0: int [count]."""
  return jnp.pad(ddim_timesteps(count, total)[:-1], (1, 0))


def phase_edges(count: int, phases: int) -> jax.Array:
  """floor(j count / phases), the cleanest index of each phase of a grid: int [phases].

  Wang et al., Phased Consistency Models (arXiv:2405.18407), in the form of the authors' code.
  """
  return jnp.arange(phases) * count // phases


def phase_edge(index: jax.Array, edges: jax.Array) -> jax.Array:
  """The last of the ascending `edges` that is not above the index: int, like index."""
  return edges[jnp.searchsorted(edges, index, side="right") - 1]
