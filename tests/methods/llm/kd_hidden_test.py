"""The parts of the loss on hidden states and relations against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import kl, loss_of, mean, setup

from distill_jax.models import student as student_lib


def test_the_loss_is_the_sum_of_its_three_parts():
  run = setup("kd_hidden", "models.teacher.layers=4", scale=1.0)
  values = []
  for name, params in (("student", run.state["student"]), ("teacher", run.frozen["teacher"])):
    model = student_lib.model(run.config, name)
    inputs = run.batch["tokens"][:, :-1]
    _, found = jax.jit(lambda p, t, m=model: m.hidden(p, t, features=True))(params, inputs)
    values.append(jax.tree.map(lambda x: np.asarray(x, np.float64), found))
  own, other = values
  maps = np.asarray(run.state["maps"], np.float64)
  hidden = sum(
    ((own["residual"][s] @ maps[s] - other["residual"][t]) ** 2).mean(-1)
    for s, t in ((0, 1), (1, 3))  # 2 layers against 4
  )
  relation = np.zeros((8, 16))
  for part in ("query", "key", "value"):
    rows = []
    for tree in (own, other):
      x = tree[part][-1].reshape(8, 16, 2, -1)
      scores = np.einsum("bthd,bshd->bhts", x, x) / x.shape[-1] ** 0.5
      weight = np.exp(scores) * np.tril(np.ones((16, 16)))
      rows.append(weight / weight.sum(-1, keepdims=True))
    q, p = rows
    ratio = np.where(p > 0, p * np.log(np.where(p > 0, p / np.where(p > 0, q, 1), 1)), 0)
    relation += ratio.sum(-1).mean(1) / 3
  log_q, log_p = run.pair(run.batch["tokens"])
  expected = mean(kl(log_p, log_q) + 0.1 * hidden + 0.1 * relation, run.batch["mask"])
  state, metrics = run.step(run.state, run.frozen, run.batch, jax.random.key(3))
  assert loss_of(metrics) == pytest.approx(expected, rel=1e-4)
  total, count = metrics["relation_loss"]
  assert float(total / count) == pytest.approx(0.1 * mean(relation, run.batch["mask"]), rel=1e-4)
  assert jnp.any(state["maps"] != run.state["maps"])  # they learn with the student
