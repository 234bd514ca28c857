"""Limits in which distillation is something else."""

import jax
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax.losses.divergences import DIVERGENCES

PLAIN = ("optim.schedule=constant", "optim.name=sgd", "optim.lr=1.0", "optim.clip_norm=0.0")


def one_step(experiment, *overrides, same=False):
  """The method's config, its state after one step from fixed weights, and the metrics."""
  config = config_lib.load(f"experiments/llm/{experiment}.py:smoke", (*PLAIN, *overrides))
  method = method_lib.load("methods", config.method.name).make(config)
  state, frozen = method.init(jax.random.key(0), {})
  if same:
    state["student"] = jax.tree.map(lambda x: x, frozen["teacher"])
  tokens = jax.random.randint(jax.random.key(1), (8, 17), 0, 256)
  batch = dict(tokens=tokens, mask=jax.random.bernoulli(jax.random.key(2), 0.7, (8, 16)))
  return config, *jax.jit(method.step)(state, frozen, batch, jax.random.key(3))


def test_without_its_divergence_it_is_training_on_the_data():
  _, kd, kd_metrics = one_step("kd", "method.alpha=0.0")
  _, sft, sft_metrics = one_step("sft")
  np.testing.assert_allclose(kd_metrics["loss"], sft_metrics["loss"], rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    kd["student"],
    sft["student"],
  )


@pytest.mark.parametrize("divergence", [f.__name__ for f in DIVERGENCES])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(divergence):
  _, _, metrics = one_step("kd", f"divergence.kind.name={divergence}", same=True)
  assert abs(metrics["loss"][0] / metrics["loss"][1]) < 1e-6
  if divergence != "total_variation":  # its gradient is not zero but any of a set at equality
    assert metrics["grad_norm"][0] < 1e-5


def test_temperature_scales_by_its_square_so_that_gradients_stay():
  """For high T the gradient of T^2 KL tends to that of half the squared logit difference."""
  norms = [
    one_step("kd", f"divergence.kind.temperature={t}.0")[2]["grad_norm"][0] for t in (100, 200)
  ]
  np.testing.assert_allclose(norms[0], norms[1], rtol=1e-2)
