"""Coreset selection against brute force, closed forms and records written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.data import coresets


def draw(seed, *shape):
  return np.asarray(jax.random.normal(jax.random.key(seed), shape))


def test_herding_follows_the_mean():
  x = draw(0, 200, 4) + 3
  order = np.asarray(coresets.herding(x, 200))
  assert sorted(order) == list(range(200))
  miss = [np.linalg.norm(np.mean(x[order[:k]], axis=0) - x.mean(0)) for k in (1, 5, 20)]
  random = np.mean([np.linalg.norm(x[k::10].mean(0) - x.mean(0)) for k in range(10)])
  assert miss[0] > miss[1] > miss[2] and miss[2] < random / 3


@pytest.mark.parametrize("farthest", [False, True])
def test_herding_is_greedy(farthest):
  x, chosen = draw(1, 15, 3), []
  for k in range(6):
    gap = np.linalg.norm((k + 1) * x.mean(0) - x[chosen].sum(0) - x, axis=1)
    rest = [i for i in range(15) if i not in chosen]
    chosen.append((max if farthest else min)(rest, key=lambda i: gap[i]))
  np.testing.assert_array_equal(coresets.herding(x, 6, farthest=farthest), chosen)


def test_herding_of_equal_examples():
  np.testing.assert_array_equal(coresets.herding(jnp.ones((4, 2)), 3), [0, 1, 2])
  np.testing.assert_array_equal(coresets.herding(jnp.ones((1, 2)), 1), [0])


def test_k_center_on_a_line():
  x = jnp.array([[0.0], [1.0], [5.0], [10.0], [7.6]])
  np.testing.assert_array_equal(coresets.k_center(x, 4, start=[0]), [3, 2, 4, 1])
  np.testing.assert_array_equal(coresets.k_center(x, 2, start=[0, 3]), [2, 4])


def test_whole_numbers_are_features_too():
  x = np.array([[0], [1], [5], [10]])
  np.testing.assert_array_equal(coresets.k_center(x, 2, start=[0]), [3, 2])
  np.testing.assert_array_equal(coresets.herding(x, 2), [2, 1])  # 5 for 4, then 2 * 4 - 5 = 3


def test_k_center_never_repeats():
  x = jnp.zeros((5, 2))
  np.testing.assert_array_equal(coresets.k_center(x, 3, start=[1, 3]), [0, 2, 4])


def test_numbers_of_examples_are_checked():
  x = draw(0, 5, 2)
  for n in (0, 6):
    with pytest.raises(ValueError, match="examples of 5"):
      coresets.herding(x, n)
  with pytest.raises(ValueError, match="examples of 3"):
    coresets.k_center(x, 4, start=[0, 1])
  with pytest.raises(ValueError, match="begin"):
    coresets.k_center(x, 2, start=[])


def test_scores_of_sure_and_of_wrong_examples():
  logits = jnp.array([[50.0, -50.0, -50.0], [-50.0, 50.0, -50.0], [0.0, 0.0, 0.0]])
  targets = jnp.eye(3)[jnp.array([0, 0, 0])]
  third = np.sqrt(6) / 3
  close = dict(rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(coresets.error_norm(logits, targets), [0, np.sqrt(2), third], **close)
  np.testing.assert_allclose(coresets.error_norm(logits, targets, order=1), [0, 2, 4 / 3], **close)
  np.testing.assert_allclose(coresets.margin(logits, targets), [-1, 1, 0], **close)
  np.testing.assert_allclose(coresets.margin(logits, targets, total=True), [-2, 1, 0], **close)


def test_gradient_norm_of_a_linear_classifier():
  """The gradient is (p - y) x^T and p - y, so its norm is |p - y| sqrt(|x|^2 + 1)."""
  x, y = draw(0, 6, 4), jnp.eye(3)[jnp.array([0, 1, 2, 0, 1, 2])]
  params = dict(w=draw(1, 4, 3), b=draw(2, 3))

  def loss(params, x, y):
    return -jnp.sum(y * jax.nn.log_softmax(x @ params["w"] + params["b"]))

  errors = coresets.error_norm(x @ params["w"] + params["b"], y)
  want = errors * np.sqrt(np.sum(x**2, axis=1) + 1)
  np.testing.assert_allclose(coresets.gradient_norm(loss, params, x, y), want, rtol=1e-5)


def test_entropy_and_the_two_heads():
  p = np.array([[1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]])
  np.testing.assert_allclose(coresets.entropy(p), [0, np.log(4), np.log(2)], rtol=1e-6, atol=1e-7)
  a, b = draw(0, 2, 3), draw(1, 2, 3)
  for alpha, want in ((0.0, jax.nn.softmax(a)), (1.0, jax.nn.softmax(b / 4))):
    np.testing.assert_allclose(coresets.two_heads(a, b, alpha=alpha, beta=4.0), want, rtol=1e-6)


def test_forgetting_by_hand():
  correct = np.array(
    [
      [1, 1, 1, 1],  # never forgotten
      [0, 0, 0, 0],  # never learned
      [0, 1, 0, 1],
      [1, 0, 1, 0],
      [0, 0, 0, 1],
      [0, 1, 1, 0],
    ]
  )
  np.testing.assert_array_equal(coresets.forgetting_events(correct), [0, 0, 1, 2, 0, 1])
  np.testing.assert_array_equal(coresets.forgetting_scores(correct), [0, 4, 1, 2, 0, 1])
  np.testing.assert_array_equal(coresets.first_learned(correct), [0, -1, 1, 0, 3, 1])
  np.testing.assert_array_equal(coresets.presentations_to_learn(correct), [0, 4, 3, 4, 3, 4])


def test_forgetting_of_one_presentation():
  correct = np.array([[True], [False]])
  np.testing.assert_array_equal(coresets.forgetting_scores(correct), [0, 1])
  np.testing.assert_array_equal(coresets.presentations_to_learn(correct), [0, 1])
  for record in (np.ones(3), np.ones((3, 0))):
    with pytest.raises(ValueError, match="record"):
      coresets.forgetting_events(record)
