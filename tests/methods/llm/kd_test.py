"""Limits in which distillation is something else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import PLAIN, kl, loss_of, mean, nll, setup

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax.losses.divergences import DIVERGENCES
from distill_jax.models import student as student_lib


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


def test_alpha_and_temperature_go_in_straight_lines():
  run = setup(
    "kd",
    "steps=5",
    "method.alpha=0.9",
    "method.alpha_end=0.1",
    "divergence.kind.temperature=1.0",
    "divergence.temperature_end=3.0",
    scale=3.0,
  )
  logs = run.pair(run.batch["tokens"])
  for step in (0, 2, 4):
    alpha, temperature = 0.9 - 0.2 * step, 1 + 0.5 * step
    log_q, log_p = (x / temperature for x in logs)
    log_q, log_p = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (log_q, log_p))
    value = alpha * temperature**2 * kl(log_p, log_q)
    value += (1 - alpha) * nll(logs[0], run.batch["tokens"])
    state = dict(run.state, step=jnp.int32(step))
    _, metrics = run.step(state, run.frozen, run.batch, jax.random.key(3))
    assert loss_of(metrics) == pytest.approx(mean(value, run.batch["mask"]), rel=1e-4)


def test_two_teachers_with_weights_and_the_logits_error():
  config = config_lib.load("experiments/llm/kd.py:smoke", PLAIN)
  with config.unlocked():
    config.method.teachers = dict(teacher=0.75, second=0.25)
    config.models.second = config.models.teacher
    config.pretrained.second = ""
    config.method.logits = 0.5
  method = method_lib.load("methods", config.method.name).make(config)
  state, frozen = method.init(jax.random.key(0), {})
  tokens = jax.random.randint(jax.random.key(1), (8, 17), 0, 256)
  batch = dict(tokens=tokens, mask=np.ones((8, 16), bool))
  model = student_lib.model(config, "student")
  logits = [
    np.asarray(model.logits(p, model.hidden(p, tokens[:, :-1])), np.float64)[..., :257]
    for p in (state["student"], frozen["teacher"], frozen["second"])
  ]
  own, *others = [(x, x - np.log(np.exp(x).sum(-1, keepdims=True))) for x in logits]
  expected = sum(
    weight * (kl(log_p, own[1]) + 0.5 * ((own[0] - z) ** 2).mean(-1)).mean()
    for weight, (z, log_p) in zip((0.75, 0.25), others, strict=True)
  )
  _, metrics = jax.jit(method.step)(state, frozen, batch, jax.random.key(3))
  assert loss_of(metrics) == pytest.approx(expected, rel=1e-4)
  config.method.teachers.second = 0.5
  with pytest.raises(ValueError, match="add up to 1"):
    method_lib.load("methods", config.method.name).make(config)
