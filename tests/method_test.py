"""`minimize` against updates worked out by hand; `load`; what a non-finite step leaves behind."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import method
from distill_jax.config import ConfigError
from distill_jax.method import minimize

ROWS, WIDTH = 12, 3


def loss_fn(params, batch, key):
  """Squared error of the rows that count, and a metric."""
  error = jnp.where(batch["mask"], (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2, 0.0)
  count = jnp.sum(batch["mask"], dtype=jnp.float32)
  return (jnp.sum(error), count), dict(big=(jnp.sum(error > 1, dtype=jnp.float32), count))


def make_batch(mask):
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(ROWS, WIDTH)).astype("f4"), rng.normal(size=ROWS).astype("f4")
  return dict(x=x, y=y, mask=np.asarray(mask, bool))


def make_params():
  return dict(w=jnp.arange(1.0, WIDTH + 1), b=jnp.float32(0.5))


@pytest.fixture(scope="module")
def step():
  """(microbatches) -> a compiled update by Adam."""
  tx = optax.adam(0.1)

  @partial(jax.jit, static_argnames="microbatches")
  def run(params, opt, batch, key, microbatches=1):
    return minimize(tx, loss_fn, params, opt, batch, key, microbatches=microbatches)

  run.tx = tx
  return run


UNEVEN = [1, 0, 0, 0, 1, 1, 1, 1, 0, 1, 1, 1]  # 3 parts of 2, 2 and 4 that count, or 6 of ...
masks = pytest.mark.parametrize("mask", [UNEVEN, [1] * ROWS, [0] * 6 + [1] * 6, [0] * ROWS])


def test_one_update_is_the_gradient_of_the_mean_through_the_optimiser():
  batch, params, tx = make_batch(UNEVEN), make_params(), optax.sgd(0.1)
  new, _, metrics = minimize(tx, loss_fn, params, tx.init(params), batch, jax.random.key(0))
  x, y = (batch[k].astype("f8")[batch["mask"]] for k in ("x", "y"))
  w, b = np.array([1.0, 2, 3]), 0.5
  error = x @ w + b - y
  grad_w, grad_b = 2 * x.T @ error / len(y), 2 * error.mean()
  np.testing.assert_allclose(new["w"], w - 0.1 * grad_w, rtol=1e-5)
  np.testing.assert_allclose(new["b"], b - 0.1 * grad_b, rtol=1e-5)
  means = {k: s / n for k, (s, n) in metrics.items()}
  np.testing.assert_allclose(means["loss"], (error**2).mean(), rtol=1e-5)
  np.testing.assert_allclose(means["big"], (error**2 > 1).mean(), rtol=1e-6)
  norm = np.sqrt((grad_w**2).sum() + grad_b**2)
  np.testing.assert_allclose(means["grad_norm"], norm, rtol=1e-5)
  assert means["skipped"] == 0
  assert metrics["loss"][1] == len(y)


@masks
@pytest.mark.parametrize("microbatches", [3, 6])
def test_microbatches_give_the_update_of_the_whole_batch(step, mask, microbatches):
  batch, params = make_batch(mask), make_params()
  args = params, step.tx.init(params), batch, jax.random.key(0)
  whole, parts = step(*args), step(*args, microbatches=microbatches)
  assert jax.tree.structure(whole) == jax.tree.structure(parts)
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_mean_of_microbatch_means_would_be_another_update(step):
  """The test above can fail: with these masks the parts weigh unevenly."""
  batch, params = make_batch(UNEVEN), make_params()
  sums = [
    loss_fn(params, jax.tree.map(lambda x: x[i::3], batch), None)[0] for i in range(3)
  ]  # as the parts are cut
  of_means = np.mean([s / n for s, n in sums])
  whole = sum(s for s, _ in sums) / sum(n for _, n in sums)
  assert abs(of_means - whole) > 0.05 * whole


def test_a_batch_that_does_not_split_is_refused(step):
  params = make_params()
  with pytest.raises(ConfigError, match="batch of 12 does not split into 5 microbatches"):
    step(params, step.tx.init(params), make_batch(UNEVEN), jax.random.key(0), microbatches=5)


def test_each_microbatch_gets_a_key_of_its_own():
  def loss(params, batch, key):
    noise = jax.random.uniform(key)
    return (params * noise, jnp.float32(1)), dict(noise=(noise, jnp.float32(1)))

  tx, key = optax.sgd(1.0), jax.random.key(7)
  args = jnp.float32(0), tx.init(jnp.float32(0)), jnp.zeros(4), key
  noise = float(minimize(tx, loss, *args, microbatches=4)[2]["noise"][0])
  expected = [float(jax.random.uniform(k)) for k in jax.random.split(key, 4)]
  assert len(set(expected)) == 4
  np.testing.assert_allclose(noise, sum(expected), rtol=1e-6)
  assert float(minimize(tx, loss, *args)[2]["noise"][0]) == float(jax.random.uniform(key))


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])  # the square of the last overflows
def test_a_non_finite_update_changes_nothing_and_is_counted(step, bad, microbatches):
  batch, params = make_batch(UNEVEN), make_params()
  opt = step.tx.init(params)
  params, opt, _ = step(params, opt, batch, jax.random.key(0))  # moments that are not zero
  batch["x"][5, 1] = bad
  new, new_opt, metrics = step(params, opt, batch, jax.random.key(1), microbatches=microbatches)
  same = jax.tree.map(lambda a, b: bool((a == b).all()), (params, opt), (new, new_opt))
  assert all(jax.tree.leaves(same))
  assert (float(metrics["skipped"][0]), float(metrics["skipped"][1])) == (1, 1)
  assert not np.isfinite(metrics["loss"][0] / metrics["loss"][1])


def test_a_masked_non_finite_row_is_no_reason_to_skip(step):
  batch, params = make_batch(UNEVEN), make_params()
  batch["y"][1] = np.inf  # that row does not count; jnp.where hides it from value and gradient
  _, _, metrics = step(params, step.tx.init(params), batch, jax.random.key(0))
  assert metrics["skipped"][0] == 0


def test_a_finite_loss_with_an_infinite_gradient_is_skipped():
  def loss(params, batch, key):
    return (jnp.sqrt(params), jnp.float32(1)), {}

  tx = optax.sgd(0.1)
  params, _, metrics = minimize(
    tx, loss, jnp.float32(0), tx.init(jnp.float32(0)), jnp.zeros(1), jax.random.key(0)
  )
  assert params == 0 and metrics["skipped"][0] == 1 and metrics["loss"][0] == 0


def test_a_batch_of_nothing_leaves_parameters_alone(step):
  params = make_params()
  new, _, metrics = step(params, step.tx.init(params), make_batch([0] * ROWS), jax.random.key(0))
  assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), params, new)))
  assert metrics["skipped"][0] == 0 and metrics["loss"][1] == 0


def test_dtypes_of_parameters_stay():
  def loss(params, batch, key):
    total = jnp.sum(params["half"].astype(jnp.float32) ** 2) + jnp.sum(params["full"] ** 2)
    return (total, jnp.float32(2)), {}

  params = dict(half=jnp.ones(3, jnp.bfloat16), full=jnp.ones(3))
  tx = optax.adamw(0.1)
  opt = tx.init(params)
  for microbatches in (1, 2):
    new, new_opt, _ = minimize(
      tx, loss, params, opt, jnp.zeros(2), jax.random.key(0), microbatches=microbatches
    )
    assert jax.tree.map(jnp.dtype, (new, new_opt)) == jax.tree.map(jnp.dtype, (params, opt))


def test_load_finds_files_by_dotted_name():
  assert method.load("methods", "llm.kd").__name__ == "distill_jax.methods.llm.kd"
  assert method.load("data", "text").__name__ == "distill_jax.data.text"
  assert method.load("evals", "language").__name__ == "distill_jax.evals.language"


@pytest.mark.parametrize(
  "kind, name, says",
  [
    ("methods", "llm.kdd", "No method 'llm.kdd'. Did you mean 'llm.kd'?"),
    ("methods", "kd", "No method 'kd'. Did you mean 'llm.kd'?"),
    ("methods", "", "No method ''. Known: "),
    ("methods", "llm", "No method 'llm'."),  # a folder
    ("methods", "llm.__init__", "No method 'llm.__init__'."),
    ("data", "txt", "No data 'txt'. Did you mean 'text'?"),
    ("evals", "langauge", "No eval 'langauge'. Did you mean 'language'?"),
  ],
)
def test_an_unknown_name_is_one_line_with_a_suggestion(kind, name, says):
  with pytest.raises(ConfigError) as error:
    method.load(kind, name)
  assert str(error.value).startswith(says) and "\n" not in str(error.value)
