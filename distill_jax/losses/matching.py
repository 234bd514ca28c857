"""Dataset distillation: gradients, features and trajectories of synthetic data against real ones.

Gradients and parameters are pytrees of float arrays. The real side is a constant: gradients flow
into the synthetic side, through a network that is the caller's.
"""

from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.losses.denoising import floats

Tree = Any  # a pytree of float arrays


def layerwise_cosine(
  synthetic: Tree, real: Tree, *, output_axis: int = -1, epsilon: float = 1e-6
) -> jax.Array:
  """Distance of two gradients that counts each output of each layer alike: DC's.

  sum over layers and their outputs o of 1 - <s_o, r_o> / (|s_o| |r_o| + epsilon), s_o and r_o the
  gradients of the weights that lead to o.

  Zhao, Mopuri, Bilen, Dataset Condensation with Gradient Matching (arXiv:2006.05929), section 3.
  Leaves of one axis (biases, scales of norms) count nothing, as in the authors' code.

  Args:
    synthetic: gradients of the loss of synthetic images.
    real: those of real images, a constant.
    output_axis: the outputs' axis of each leaf: the last of [H, W, I, O] and [I, O].
    epsilon: added to the product of norms. A row of zeros is at distance 1.

  Returns:
    Scalar.

  Raises:
    ValueError: trees or shapes differ.
  """

  def leaf(s, r):
    s, r = floats(s, jax.lax.stop_gradient(r))
    if s.ndim < 2:
      return jnp.zeros((), s.dtype)
    s, r = (jnp.moveaxis(x, output_axis, 0).reshape(x.shape[output_axis], -1) for x in (s, r))
    return jnp.sum(1 - jnp.sum(s * r, axis=1) / (_norm(s) * _norm(r) + epsilon))

  return _total(leaf, synthetic, real)


def whole_cosine(synthetic: Tree, real: Tree, *, epsilon: float = 1e-6) -> jax.Array:
  """1 - <s, r> / (|s| |r| + epsilon), s and r all gradients as one vector, biases too.

  An alternative of DC's authors' code. Arguments and result as `layerwise_cosine`.
  """
  real = jax.lax.stop_gradient(real)
  product = dot(synthetic, real)
  return 1 - product / (_root(dot(synthetic, synthetic)) * _root(dot(real, real)) + epsilon)


def squared_distance(synthetic: Tree, real: Tree) -> jax.Array:
  """|s - r|^2 over all leaves, biases too. Arguments and result as `layerwise_cosine`."""

  def leaf(s, r):
    s, r = floats(s, jax.lax.stop_gradient(r))
    return jnp.sum(jnp.square(s - r))

  return _total(leaf, synthetic, real)


def dot(a: Tree, b: Tree) -> jax.Array:
  """<a, b> over all leaves. Scalar."""
  return _total(lambda x, y: jnp.sum(jnp.multiply(*floats(x, y))), a, b)


def class_means(
  features: jax.Array, labels: jax.Array, *, num_classes: int
) -> tuple[jax.Array, jax.Array]:
  """The mean of each class's rows, 0 for a class without any, and the number of its rows.

  Args:
    features: [N, ...].
    labels: int [N], in any order.
    num_classes: C.

  Returns:
    [C, ...] and float [C].
  """
  (features,) = floats(features)
  count = jax.ops.segment_sum(jnp.ones(len(labels), features.dtype), labels, num_classes)
  total = jax.ops.segment_sum(features, labels, num_classes)
  return total / jnp.maximum(count, 1).reshape(-1, *[1] * (features.ndim - 1)), count


def distribution_matching(
  synthetic: jax.Array,
  real: jax.Array,
  *,
  synthetic_labels: jax.Array,
  real_labels: jax.Array,
  num_classes: int,
) -> jax.Array:
  """|mean of a class's synthetic features - mean of its real ones|^2, for each class.

  Of the features before the classifier, with a new random network at each step, it is DM: Zhao and
  Bilen, Dataset Condensation with Distribution Matching (arXiv:2110.04181). Of every layer's
  features, weighted, it is the alignment of Wang et al., CAFE: Learning to Condense Dataset by
  Aligning Features (arXiv:2203.01531). Both papers sum over the classes.

  Args:
    synthetic: [M, ...], features of one layer.
    real: [N, ...], a constant.
    synthetic_labels, real_labels: int [M] and [N].
    num_classes: C.

  Returns:
    [C]; 0 for a class that has no image on one of the sides.
  """
  ours, n = class_means(synthetic, synthetic_labels, num_classes=num_classes)
  theirs, m = class_means(jax.lax.stop_gradient(real), real_labels, num_classes=num_classes)
  distance = jnp.sum(jnp.square(ours - theirs).reshape(num_classes, -1), axis=1)
  return jnp.where((n > 0) & (m > 0), distance, 0.0)


def discrimination(
  synthetic: jax.Array,
  real: jax.Array,
  *,
  synthetic_labels: jax.Array,
  real_labels: jax.Array,
  num_classes: int,
) -> jax.Array:
  """-log softmax_c <r_i, s_c> at i's class: real images are told apart by synthetic class means s.

  Wang et al., CAFE: Learning to Condense Dataset by Aligning Features (arXiv:2203.01531), the
  discrimination loss; the authors' code sums it over the real images.

  Args:
    synthetic: [M, D], features before the classifier.
    real: [N, D], a constant.
    synthetic_labels, real_labels: int [M] and [N].
    num_classes: C. A class without a synthetic image is left out of the softmax.

  Returns:
    [N] nats; 0 for a real image whose class has no synthetic one.
  """
  synthetic, real = floats(synthetic, jax.lax.stop_gradient(real))
  means, count = class_means(synthetic, synthetic_labels, num_classes=num_classes)
  logits = jnp.where(count > 0, jnp.einsum("nd,cd->nc", real, means, precision="highest"), -jnp.inf)
  chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), real_labels[:, None], axis=1)[:, 0]
  return jnp.where(count[real_labels] > 0, -chosen, 0.0)


def trajectory_distance(end: Tree, start: Tree, target: Tree) -> jax.Array:
  """|end - target|^2 / |start - target|^2: 0 where training ends as the expert did, 1 for no step.

  Cazenavette, Wang, Torralba, Efros, Zhu, Dataset Distillation by Matching Training Trajectories
  (arXiv:2203.11932), section 3. No epsilon: the expert must have moved.

  Args:
    end: parameters after the student's steps on synthetic data.
    start: the expert's, where the student began; a constant.
    target: the expert's some epochs later; a constant.

  Returns:
    Scalar.
  """
  start = jax.lax.stop_gradient(start)
  return squared_distance(end, target) / squared_distance(start, target)


def tesla(
  gradient_sum: Tree,
  start: Tree,
  target: Tree,
  learning_rate: jax.Array | float,
  *,
  scale: float = 1.0,
) -> jax.Array:
  """`trajectory_distance` of end = start - learning_rate G, G = sum_k g_k the steps' gradients.

  If every g_k is taken at parameters that are constants, the loss is linear-quadratic in G and
  d loss / d x_k = <2 learning_rate (learning_rate G + target - start) / |start - target|^2, d g_k>:
  jax.grad of this function in G gives the cotangent of every g_k, so a second pass over the steps
  needs the memory of one. What the parameters of step k owe to earlier images is left out.

  Cui, Wang, Si, Hsieh, Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory
  (arXiv:2211.10586), section 3.

  Args:
    gradient_sum: G, like start.
    start, target: the expert's parameters; constants.
    learning_rate: of the student's steps; a gradient flows into it.
    scale: of the gradient in G. The authors' code loses the factor 2 of the square: scale 0.5.

  Returns:
    Scalar.
  """
  end = jax.tree.map(
    lambda w, g: w - learning_rate * (scale * g + (1 - scale) * jax.lax.stop_gradient(g)),
    jax.lax.stop_gradient(start),
    gradient_sum,
  )
  return trajectory_distance(end, start, target)


def gsam_ascent(
  params: Tree, gradient: Tree, *, rho: float, adaptive: bool = False, epsilon: float = 1e-12
) -> Tree:
  """The worst parameters nearby: w + rho g / |g|, or w + rho w^2 g / | |w| g | if adaptive.

  Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization
  (arXiv:2010.01412); adaptive: Kwon et al., ASAM (arXiv:2102.11600). FTD trains its experts so: Du,
  Jiang, Tan, Zhou, Li, Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation
  (arXiv:2211.11004).

  Args:
    params: w.
    gradient: g, at w.
    rho: length of the step.
    adaptive: measure the step in units of each weight.
    epsilon: added to the norm.

  Returns:
    Parameters.
  """
  scaled = jax.tree.map(lambda w, g: jnp.abs(w) * g, params, gradient) if adaptive else gradient
  step = rho / (_root(dot(scaled, scaled)) + epsilon)
  if adaptive:
    return jax.tree.map(lambda w, g: w + step * jnp.square(w) * g, params, gradient)
  return jax.tree.map(lambda w, g: w + step * g, params, gradient)


def gsam_gradient(gradient: Tree, perturbed: Tree, *, alpha: float, epsilon: float = 1e-12) -> Tree:
  """g1 - alpha (g0 - <g0, g1> g1 / |g1|^2): the part of g0 that is orthogonal to g1 is climbed.

  Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training (arXiv:2203.08065).

  Args:
    gradient: g0, at the parameters.
    perturbed: g1, at `gsam_ascent`'s.
    alpha: 0 is SAM.
    epsilon: added to the norms.

  Returns:
    The gradient to descend, like g0.
  """
  norm, other = _root(dot(gradient, gradient)), _root(dot(perturbed, perturbed))
  cosine = dot(gradient, perturbed) / (norm * other + epsilon)
  along = cosine * norm / (other + epsilon)
  return jax.tree.map(lambda g0, g1: g1 - alpha * (g0 - along * g1), gradient, perturbed)


def contrastive(images: jax.Array, texts: jax.Array, *, scale: jax.Array | float) -> jax.Array:
  """-(log softmax_j(scale <x_i, t_j>)_i + log softmax_j(scale <x_j, t_i>)_i) / 2.

  The training loss of image-text pairs whose trajectories are matched in Wu et al., Vision-Language
  Dataset Distillation (arXiv:2308.07545). Gradients flow into both.

  Args:
    images, texts: [B, D], unit vectors; row i of the one belongs to row i of the other.
    scale: inverse temperature.

  Returns:
    [B] nats.
  """
  logits = scale * jnp.einsum("id,jd->ij", *floats(images, texts), precision="highest")
  to_texts, to_images = jax.nn.log_softmax(logits, axis=1), jax.nn.log_softmax(logits, axis=0)
  return -(jnp.diagonal(to_texts) + jnp.diagonal(to_images)) / 2


def _norm(x):
  return _root(jnp.sum(jnp.square(x), axis=1))


def _root(square):
  """Square root, with gradient 0 at 0."""
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _total(leaf, a, b):
  terms = jax.tree.leaves(jax.tree.map(leaf, a, b))
  shapes = [[x.shape for x in jax.tree.leaves(tree)] for tree in (a, b)]
  if shapes[0] != shapes[1]:
    raise ValueError(f"leaves differ in shape: {shapes[0]} and {shapes[1]}")
  return sum(terms[1:], terms[0])
