"""Score distillation: losses of generated samples whose gradients compare two denoisers.

x is what the generator made, [B, ...]. `real` and `fake` are the denoised images of the teacher
and of the network that follows the generator, at one noised copy of x, all in the space of x.
Where only the gradient of a loss has a meaning, its value is `pseudo_loss`: half the square of
that gradient. Losses are elementwise, [B, ...], in float32 or float64; their sum over an example is
the paper's, their mean over everything the usual code's.
"""

import jax
import jax.numpy as jnp

from distill_jax.losses.denoising import expand, floats, squared_error


def pseudo_loss(x: jax.Array, gradient: jax.Array) -> jax.Array:
  """gradient^2 / 2, with `gradient` as its gradient in x: (x - sg[x - gradient])^2 / 2.

  The square is not taken of x - (x - gradient), where a small gradient would drown in rounding.

  Args:
    x: [B, ...].
    gradient: [B, ...]; no gradient flows into it.

  Returns:
    [B, ...], elementwise.
  """
  gradient = jax.lax.stop_gradient(gradient)
  return jnp.square(gradient) / 2 + (x - jax.lax.stop_gradient(x)) * gradient


def teacher_distance(
  x: jax.Array, real: jax.Array, *, epsilon: float = 0.0, floor: float = 1e-5
) -> jax.Array:
  """max(mean |x - real| + epsilon, floor), the mean over each example: [B, 1, ...], no gradient."""
  axes = tuple(range(1, x.ndim))
  distance = jnp.mean(jnp.abs(x - real), axis=axes, keepdims=True) + epsilon
  return jax.lax.stop_gradient(jnp.maximum(distance, floor))


def distribution_matching(
  x: jax.Array,
  real: jax.Array,
  fake: jax.Array,
  *,
  weight: jax.Array | float = 1.0,
  normalize: bool = True,
  epsilon: float = 0.0,
  floor: float = 0.0,
) -> jax.Array:
  """Pseudo-loss of gradient weight (fake - real) / n, n = max(mean |x - real| + epsilon, floor).

  fake - real = (sigma^2 / alpha) (score of the fake - score of the teacher): the gradient of
  KL(generated || teacher) at one noise level, up to weight. A NaN entry of the gradient is 0 (0/0),
  an infinite one the largest number.

  Yin et al., One-step Diffusion with Distribution Matching Distillation (DMD, arXiv:2311.18828) and
  Improved Distribution Matching Distillation (DMD2, arXiv:2405.14867): the defaults, as their code.
  FastGen has epsilon = 1e-6. Zheng et al., rCM (arXiv:2510.08431): floor = 1e-5, and twice this
  loss. Zhang et al., DisBack (arXiv:2408.15991): `real` is an earlier checkpoint on the way from
  the teacher to the generator's first state. The f-divergences (`f_divergence.py`) set weight.

  Args:
    weight: a number or [B].
    normalize: False has n = 1.
  """
  x, real, fake = floats(x, real, fake)
  gradient = expand(weight, x) * (fake - real)
  if normalize:
    gradient = gradient / teacher_distance(x, real, epsilon=epsilon, floor=floor)
  return pseudo_loss(x, jnp.nan_to_num(gradient))


def diff_instruct(
  x: jax.Array, real: jax.Array, fake: jax.Array, *, weight: jax.Array | float = 1.0
) -> jax.Array:
  """weight sg[fake - real] x: `distribution_matching` without normaliser, of another value.

  Luo et al., Diff-Instruct (arXiv:2305.18455). The paper weighs the difference of the scores,
  (fake - real) alpha / sigma^2, by w(t); the authors' code has weight 1 on the images.

  Args:
    weight: a number or [B].
  """
  x, real, fake = floats(x, real, fake)
  return jax.lax.stop_gradient(expand(weight, x) * (fake - real)) * x


def guidance_augmentation(
  x: jax.Array, conditional: jax.Array, unconditional: jax.Array, *, scale: jax.Array | float
) -> jax.Array:
  """Pseudo-loss of gradient -(scale - 1) (conditional - unconditional), the teacher's images.

  fake - [u + scale (c - u)] = (fake - c) - (scale - 1) (c - u): the gradient of DMD with a guided
  teacher is that of `distribution_matching(x, c, fake, normalize=False)` plus this one. Decoupled
  DMD takes the two at different noise levels. Liu et al., Decoupled DMD (arXiv:2511.22677).

  Args:
    conditional, unconditional: c and u, [B, ...], at this term's own noise level.
    scale: the guidance scale, 1 is none: a number or [B].
  """
  x, conditional, unconditional = floats(x, conditional, unconditional)
  gradient = -(expand(scale, x) - 1) * (conditional - unconditional)
  return pseudo_loss(x, gradient)


def sid(x: jax.Array, real: jax.Array, fake: jax.Array, *, alpha: float = 1.0) -> jax.Array:
  """(real - fake) ((real - x) - alpha (real - fake)) / n, n = sg[max(mean |x - real|, 1e-5)].

  Gradients flow into x, real and fake, so through both networks into x; their parameters are not
  differentiated. With an exact fake score and without n, the mean of an example's sum is (1 -
  alpha) F, F = E |real - fake|^2: at alpha = 1/2 the gradient is half that of F, at alpha = 1 the
  mean is 0 and the gradient is not. Examples with a NaN in any input count 0 (the authors drop
  them, and divide by fewer).

  Zhou et al., Score identity Distillation (SiD, arXiv:2404.04057), with alpha = 1.2, or 1; Zhou et
  al., Long and Short Guidance in Score identity Distillation (SiD-LSG, arXiv:2406.01561), with
  guided networks and alpha = 1, (real - fake) (fake - x); Chen et al., Score Forgetting
  Distillation (arXiv:2409.11219), where `real` sees another class.

  Args:
    alpha: number.
  """
  x, real, fake = floats(x, real, fake)
  axes = tuple(range(1, x.ndim))
  valid = ~jnp.any(jnp.isnan(x + real + fake), axis=axes, keepdims=True)
  x, real, fake = (jnp.where(valid, array, 0) for array in (x, real, fake))
  gap = real - fake
  return gap * ((real - x) - alpha * gap) / teacher_distance(x, real)


def noise_difference(
  x: jax.Array,
  teacher: jax.Array,
  other: jax.Array,
  *,
  weight: jax.Array | float,
  clip: float | None = None,
) -> jax.Array:
  """Pseudo-loss of gradient weight (teacher - other), two predictions of the noise in x.

  NaN entries of the gradient are 0; with `clip` it is cut to [-clip, clip] then. What `other` is:

    the noise itself          SDS: Poole et al., DreamFusion (arXiv:2209.14988)
    a LoRA that follows x     VSD: Wang et al., ProlificDreamer (arXiv:2305.16213); Nguyen and Tran,
                              SwiftBrush (arXiv:2312.05239)
    `entropic` of that LoRA   ESD: Wang et al., Taming Mode Collapse in Score Distillation for
                              Text-to-3D Generation (arXiv:2401.00909)
    a network trained by      Wei et al., Adversarial Score Distillation (arXiv:2312.00739)
    `adversarial_score`
    the teacher at a later    asynchronous: Ma et al., ScaleDreamer (arXiv:2407.02040)
    time, `asynchronous_time`

  Args:
    x: [B, ...], latents.
    teacher, other: [B, ...], guided where the method guides them.
    weight: w(t), a number or [B]; see `noise_weight`.
  """
  x, teacher, other = floats(x, teacher, other)
  gradient = jnp.nan_to_num(expand(weight, x) * (teacher - other))
  if clip is not None:
    gradient = jnp.clip(gradient, -clip, clip)
  return pseudo_loss(x, gradient)


def noise_weight(alpha: jax.Array, sigma: jax.Array, *, name: str = "sds") -> jax.Array:
  """w(t) of `noise_difference`: "sds" sigma^2, "uniform" 1, "fantasia3d" alpha sigma^2, or
  "ratio" sigma / alpha (Adversarial Score Distillation's code).

  Args:
    alpha, sigma: of x_t = alpha x0 + sigma eps.

  Raises:
    ValueError: no such weight.
  """
  match name:
    case "sds":
      return jnp.square(sigma)
    case "uniform":
      return jnp.ones_like(sigma)
    case "fantasia3d":
      return alpha * jnp.square(sigma)
    case "ratio":
      return sigma / alpha
  raise ValueError(f"no weight {name!r}: sds, uniform, fantasia3d or ratio")


def entropic(conditional: jax.Array, marginal: jax.Array, *, entropy: float) -> jax.Array:
  """entropy marginal + (1 - entropy) conditional: the fake score of ESD.

  `conditional` knows the particle or the camera of x, `marginal` does not. At entropy 0 it is VSD;
  a larger share of the marginal keeps the particles apart. Wang et al., Taming Mode Collapse in
  Score Distillation for Text-to-3D Generation (ESD, arXiv:2401.00909).
  """
  return conditional + entropy * (marginal - conditional)


def adversarial_score(
  prediction: jax.Array, noise: jax.Array, teacher: jax.Array, *, gamma: float
) -> jax.Array:
  """(psi - noise)^2 + gamma (psi - sg[teacher])^2, elementwise, psi the trained prediction.

  Its optimum is psi = (fake + gamma teacher) / (1 + gamma), so that teacher - psi is what VSD has
  times 1 / (1 + gamma). Wei et al., Adversarial Score Distillation (arXiv:2312.00739), as their
  code has it.
  """
  return squared_error(prediction, noise) + squared_error(
    prediction, jax.lax.stop_gradient(teacher), weight=gamma
  )


def asynchronous_time(
  t: jax.Array, *, ratio: float = 0.1, min_step: int = 20, steps: int = 1000
) -> jax.Array:
  """clip(t + floor(clip(ratio (t - min_step), 0, last - t)), 1, last), last = steps - 1.

  The later step of asynchronous score distillation: the teacher at more noise stands for the fake
  score. Ma et al., ScaleDreamer (arXiv:2407.02040); the default ratio is of this project.

  Args:
    t: [B] steps in [0, steps), of any dtype, which the result keeps.
  """
  last = steps - 1
  ahead = jnp.floor(jnp.clip(ratio * (t - min_step), 0, last - t))
  return jnp.clip(t + ahead.astype(t.dtype), 1, last)


def perp_neg(
  unconditional: jax.Array,
  conditional: jax.Array,
  negatives: jax.Array,
  weights: jax.Array,
  *,
  scale: float | jax.Array,
) -> jax.Array:
  """u + scale (c' + sum_i w_i perp(n_i - u, c')), c' = c - u: negative prompts that leave c alone.

  perp(a, b) = a - b <a, b> / max(<b, b>, 1e-6) over each example. Armandpour et al., Re-imagine the
  Negative Prompt Algorithm (Perp-Neg, arXiv:2304.04968).

  Args:
    unconditional, conditional: [B, ...], u and c.
    negatives: [N, B, ...], predictions n_i of the negative prompts.
    weights: [N, B], w_i, negative ones push away.
    scale: the guidance scale, a number or [B].
  """
  axes = tuple(range(1, conditional.ndim))
  positive = conditional - unconditional
  square = jnp.sum(jnp.square(positive), axis=axes, keepdims=True)
  total = positive
  for negative, weight in zip(negatives - unconditional, weights, strict=True):
    along = jnp.sum(negative * positive, axis=axes, keepdims=True) / jnp.maximum(square, 1e-6)
    total += expand(weight, positive) * (negative - along * positive)
  return unconditional + expand(scale, positive) * total
