"""Gradient, distribution and trajectory matching against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import matching


def draw(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def trees():
  return [
    dict(kernel=draw(s, 3, 3, 2, 4), bias=draw(s + 1, 4), head=draw(s + 2, 8, 5)) for s in (0, 10)
  ]


def scaled(tree, factor):
  return jax.tree.map(lambda x: factor * x, tree)


def close(a, b, **tolerance):
  tolerance = dict(rtol=1e-5, atol=1e-6) | tolerance
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_cosines_see_directions_only():
  tree, _ = trees()
  for distance, outputs in ((matching.layerwise_cosine, 9), (matching.whole_cosine, 1)):
    close(distance(scaled(tree, 3.0), tree), 0.0, atol=1e-5)
    close(distance(scaled(tree, -0.5), tree), 2.0 * outputs, rtol=1e-4)


def test_layerwise_cosine_counts_outputs_alike_and_no_bias():
  tree, other = trees()
  scales = jnp.array([1e-1, 1.0, 10.0, 1e2])
  close(
    matching.layerwise_cosine(
      tree | dict(kernel=tree["kernel"] * scales, bias=other["bias"]), tree
    ),
    0.0,
    atol=1e-4,
  )
  flipped = tree["kernel"] * jnp.array([1.0, -1.0, 1.0, -1.0])
  close(matching.layerwise_cosine(tree | dict(kernel=flipped), tree), 4.0, rtol=1e-4)
  gradient = jax.grad(matching.layerwise_cosine)(other, tree)
  assert not np.any(gradient["bias"]) and np.any(gradient["head"])


def test_layerwise_cosine_in_another_layout():
  tree, other = ({k: v for k, v in t.items() if k != "bias"} for t in trees())
  moved = [jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), t) for t in (tree, other)]
  close(matching.layerwise_cosine(*moved, output_axis=0), matching.layerwise_cosine(tree, other))


@pytest.mark.parametrize("distance", [matching.layerwise_cosine, matching.whole_cosine])
def test_zero_gradients_are_at_distance_one(distance):
  tree, _ = trees()
  zero = scaled(tree, 0.0)
  outputs = 9 if distance is matching.layerwise_cosine else 1
  for pair in ((zero, tree), (tree, zero), (zero, zero)):
    value, gradient = jax.value_and_grad(distance)(*pair)
    close(value, 1.0 * outputs)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))


def test_squared_distance_is_of_all_leaves():
  tree, other = trees()
  flat = [np.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (tree, other)]
  close(matching.squared_distance(tree, other), np.sum((flat[0] - flat[1]) ** 2))
  close(matching.dot(tree, other), flat[0] @ flat[1])


@pytest.mark.parametrize(
  "distance", [matching.layerwise_cosine, matching.whole_cosine, matching.squared_distance]
)
def test_the_real_side_is_a_constant_of_the_same_shape(distance):
  tree, other = trees()
  assert not any(np.any(g) for g in jax.tree.leaves(jax.grad(distance, argnums=1)(tree, other)))
  with pytest.raises(ValueError):
    distance(tree, other | dict(head=other["head"][:, :1]))


def test_bfloat16_gradients_are_summed_in_float32():
  tree = jax.tree.map(lambda x: x.astype(jnp.bfloat16), trees()[0])
  assert matching.squared_distance(tree, tree).dtype == jnp.float32
  assert matching.layerwise_cosine(tree, tree).dtype == jnp.float32


def test_class_means_of_unsorted_labels():
  means, count = matching.class_means(
    jnp.array([[1.0], [2.0], [5.0]]), jnp.array([2, 0, 2]), num_classes=4
  )
  close(means, np.array([[2.0], [0.0], [3.0], [0.0]]))
  close(count, np.array([1.0, 0.0, 2.0, 0.0]))


def test_distribution_matching_is_the_loop_over_classes():
  synthetic, real = draw(0, 4, 2, 3), draw(1, 7, 2, 3)
  labels = jnp.array([0, 2, 0, 1]), jnp.array([2, 2, 0, 0, 0, 2, 3])  # no real 1, no synthetic 3

  def loss(x):
    return matching.distribution_matching(
      x, real, synthetic_labels=labels[0], real_labels=labels[1], num_classes=4
    )

  want, gradient = np.zeros(4), np.zeros(synthetic.shape)
  for c in (0, 2):
    ours, theirs = np.asarray(labels[0] == c), np.asarray(labels[1] == c)
    gap = np.mean(synthetic[ours], axis=0) - np.mean(real[theirs], axis=0)
    want[c], gradient[ours] = np.sum(gap**2), 2 * gap / np.sum(ours)
  close(loss(synthetic), want)
  close(jax.grad(lambda x: jnp.sum(loss(x)))(synthetic), gradient)


def discriminated(synthetic, real, labels, num_classes=2):
  return matching.discrimination(
    synthetic, real, synthetic_labels=labels[0], real_labels=labels[1], num_classes=num_classes
  )


def test_discrimination_of_two_classes():
  synthetic, real = draw(0, 3, 4), draw(1, 2, 4)
  means = synthetic[0], (synthetic[1] + synthetic[2]) / 2
  want = [
    np.log1p(np.exp(real[0] @ (means[1] - means[0]))),
    np.log1p(np.exp(real[1] @ (means[0] - means[1]))),
  ]
  close(discriminated(synthetic, real, (jnp.array([0, 1, 1]), jnp.array([0, 1]))), np.array(want))


def test_discrimination_without_a_class_and_at_extremes():
  synthetic, real = 1e3 * draw(0, 2, 4), draw(1, 3, 4)
  labels = jnp.array([0, 1]), jnp.array([0, 1, 2])
  value, gradient = jax.value_and_grad(lambda s: jnp.sum(discriminated(s, real, labels, 3)))(
    synthetic
  )
  assert np.isfinite(value) and np.all(np.isfinite(gradient))
  assert discriminated(synthetic, real, labels, 3)[2] == 0
  two = tuple(x[:2] for x in labels)
  close(discriminated(synthetic, real[:2], two, 3), discriminated(synthetic, real[:2], two))


def test_trajectory_distance_from_none_to_all_of_the_way():
  start, target = trees()
  half = jax.tree.map(lambda a, b: (a + b) / 2, start, target)
  for end, want in ((start, 1.0), (half, 0.25), (target, 0.0)):
    close(matching.trajectory_distance(end, start, target), want)
  gradients = jax.grad(matching.trajectory_distance, argnums=(1, 2))(half, start, target)
  assert not any(np.any(g) for g in jax.tree.leaves(gradients))


def quadratic(params, x):
  """The gradient at params of a step's loss, curved in both."""
  return jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w["a"]) ** 2) + jnp.sum(w["b"] * x**3))(params)


def linear(params, x):
  return dict(a=jnp.outer(x, x[:2]) ** 2, b=x**3)


def tesla_of(x, lr, step, **options):
  start, target = ({"a": draw(s, 3, 2), "b": draw(s + 1, 3)} for s in (0, 10))
  params, total = start, scaled(start, 0.0)
  for row in x:
    g = step(params, row)
    total = jax.tree.map(jnp.add, total, g)
    params = jax.lax.stop_gradient(jax.tree.map(lambda w, g: w - lr * g, params, g))
  return matching.tesla(total, start, target, lr, **options), (params, start, target, total)


def unrolled(x, lr, step):
  start, target = ({"a": draw(s, 3, 2), "b": draw(s + 1, 3)} for s in (0, 10))
  params = start
  for row in x:
    params = jax.tree.map(lambda w, g: w - lr * g, params, step(params, row))
  return matching.trajectory_distance(params, start, target)


def test_tesla_has_the_value_of_the_steps():
  x = draw(3, 4, 3)
  close(tesla_of(x, 0.1, quadratic)[0], unrolled(x, 0.1, quadratic))


def test_tesla_is_exact_where_gradients_do_not_depend_on_parameters():
  x, of = draw(3, 4, 3), dict(argnums=(0, 1))
  close(
    jax.grad(lambda x, lr: tesla_of(x, lr, linear)[0], **of)(x, 0.1),
    jax.grad(lambda x, lr: unrolled(x, lr, linear), **of)(x, 0.1),
  )
  ours, exact = (
    jax.grad(f)(x)
    for f in (lambda x: tesla_of(x, 0.1, quadratic)[0], lambda x: unrolled(x, 0.1, quadratic))
  )
  assert np.max(np.abs(ours - exact)) > 1e-3  # and only there


def test_tesla_in_two_passes():
  x, lr = draw(3, 4, 3), 0.1
  whole = jax.grad(lambda x: tesla_of(x, lr, quadratic)[0])(x)
  _, (_, start, target, total) = tesla_of(x, lr, quadratic)
  cotangent = jax.grad(matching.tesla)(total, start, target, lr)
  distance = matching.squared_distance(start, target)
  formula = jax.tree.map(lambda g, t, s: 2 * lr * (lr * g + t - s) / distance, total, target, start)
  close(cotangent, formula)
  params = start
  for k, row in enumerate(x):
    g, pull = jax.vjp(lambda r, p=params: quadratic(p, r), row)
    close(pull(cotangent)[0], whole[k])
    params = jax.tree.map(lambda w, g: w - lr * g, params, g)


def test_tesla_scale_is_of_the_images_alone():
  x = draw(3, 4, 3)
  full, half = (
    jax.value_and_grad(lambda x, lr, s=s: tesla_of(x, lr, quadratic, scale=s)[0], (0, 1))(x, 0.1)
    for s in (1.0, 0.5)
  )
  close(full[0], half[0])
  close(full[1][0] / 2, half[1][0])
  close(full[1][1], half[1][1])


def test_gsam_steps_as_far_as_rho():
  params, gradient = trees()
  step = jax.tree.map(jnp.subtract, matching.gsam_ascent(params, gradient, rho=0.5), params)
  close(matching.dot(step, step), 0.25, rtol=1e-4)
  step = jax.tree.map(
    lambda a, w: (a - w) / w, matching.gsam_ascent(params, gradient, rho=0.5, adaptive=True), params
  )
  close(matching.dot(step, step), 0.25, rtol=1e-3)  # in units of each weight


def test_gsam_climbs_what_is_orthogonal():
  plain, perturbed = trees()
  close(matching.gsam_gradient(plain, perturbed, alpha=0.0), perturbed)
  close(matching.gsam_gradient(scaled(perturbed, 2.0), perturbed, alpha=0.7), perturbed)
  change = jax.tree.map(
    jnp.subtract, matching.gsam_gradient(plain, perturbed, alpha=0.7), perturbed
  )
  close(matching.dot(change, perturbed), 0.0, atol=1e-3)
  assert matching.dot(change, plain) < 0
  zero = scaled(plain, 0.0)
  close(matching.gsam_gradient(zero, zero, alpha=0.7), zero)
  close(matching.gsam_ascent(plain, zero, rho=0.5), plain)


def test_contrastive_closed_forms():
  close(matching.contrastive(draw(0, 1, 3), draw(1, 1, 3), scale=50.0), np.zeros(1))
  eye = jnp.eye(4)
  close(matching.contrastive(eye, eye, scale=2.0), np.full(4, np.log(1 + 3 * np.exp(-2.0))))
  images, texts = draw(0, 3, 5), draw(1, 3, 5)
  close(
    matching.contrastive(images, texts, scale=2.0), matching.contrastive(texts, images, scale=2.0)
  )
  np.testing.assert_array_less(1e3, matching.contrastive(eye, eye[::-1], scale=1e4))
