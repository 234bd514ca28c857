"""`minimize` against updates worked out by hand; `load`; what a non-finite step leaves behind;
several seeds at once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import method
from distill_jax.config import ConfigError
from distill_jax.method import Method, minimize, over_seeds

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
  return dict(w=np.arange(1, WIDTH + 1, dtype="f4"), b=np.float32(0.5))


@pytest.fixture(scope="module")
def step():
  """SGD with momentum, compiled once for each count of microbatches."""

  @partial(jax.jit, static_argnames="microbatches")
  def run(params, opt, batch, key, microbatches=1):
    return minimize(SGD, loss_fn, params, opt, batch, key, microbatches=microbatches)

  return run


SGD = optax.sgd(0.1, momentum=0.9)
UNEVEN = [1, 0, 1, 1, 1, 1, 1, 0, 0, 1, 0, 0]  # cut in three, 4, 1 and 2 of these count


def by_hand(batch):
  """Mean loss and its gradient at `make_params`, in float64."""
  x, y = (batch[k].astype("f8")[batch["mask"]] for k in ("x", "y"))
  error = x @ np.array([1.0, 2, 3]) + 0.5 - y
  return (error**2).mean(), 2 * x.T @ error / len(y), 2 * error.mean()


def equal(a, b) -> bool:
  return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_one_update_is_the_gradient_of_the_mean_through_the_optimiser(step):
  batch, params = make_batch(UNEVEN), make_params()
  new, _, metrics = step(params, SGD.init(params), batch, jax.random.key(0))
  loss, grad_w, grad_b = by_hand(batch)
  np.testing.assert_allclose(new["w"], [1, 2, 3] - 0.1 * grad_w, rtol=1e-5)
  np.testing.assert_allclose(new["b"], 0.5 - 0.1 * grad_b, rtol=1e-5)
  means = {k: float(s) / float(n) for k, (s, n) in metrics.items()}
  norm = np.sqrt((grad_w**2).sum() + grad_b**2)
  assert means == pytest.approx(dict(loss=loss, grad_norm=norm, skipped=0, big=means["big"]))
  assert float(metrics["loss"][1]) == float(metrics["big"][1]) == sum(UNEVEN)


@pytest.mark.parametrize("mask", [UNEVEN, [1] * ROWS, [1, 0, 0] * 4, [0] * ROWS])
def test_microbatches_give_the_update_of_the_whole_batch(step, mask):
  params = make_params()
  args = params, SGD.init(params), make_batch(mask), jax.random.key(0)
  whole, parts = step(*args), step(*args, microbatches=3)
  assert jax.tree.structure(whole) == jax.tree.structure(parts)
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_mean_of_microbatch_means_would_be_another_update():
  """So the test above can fail: cut as `minimize` cuts them, the parts weigh unevenly."""
  batch = make_batch(UNEVEN)
  parts = [by_hand(jax.tree.map(lambda x: x[i::3], batch)) for i in range(3)]
  for of_parts, whole in zip(zip(*parts, strict=True), by_hand(batch), strict=True):
    assert np.linalg.norm(np.mean(of_parts, 0) - whole) > 0.05 * np.linalg.norm(whole)


def test_a_batch_that_does_not_split_is_refused(step):
  params = make_params()
  with pytest.raises(ConfigError, match="batch of 12 does not split into 5 microbatches"):
    step(params, SGD.init(params), make_batch(UNEVEN), jax.random.key(0), microbatches=5)


def test_each_microbatch_gets_a_key_of_its_own():
  def loss(params, batch, key):
    noise = jax.random.uniform(key)
    return (params * noise, jnp.float32(1)), dict(noise=(noise, jnp.float32(1)))

  @jax.jit
  def noises(key):
    args = jnp.float32(0), SGD.init(jnp.float32(0)), jnp.zeros(4), key
    totals = [minimize(SGD, loss, *args, microbatches=n)[2]["noise"][0] for n in (1, 4)]
    return totals, jax.vmap(jax.random.uniform)(jax.random.split(key, 4)), jax.random.uniform(key)

  (one, four), of_parts, of_whole = noises(jax.random.key(7))
  assert len(set(of_parts.tolist())) == 4
  np.testing.assert_allclose(four, np.sum(of_parts), rtol=1e-6)
  assert one == of_whole


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])  # the square of the last overflows
def test_a_non_finite_update_changes_nothing_and_is_counted(step, bad, microbatches):
  batch, params = make_batch(UNEVEN), make_params()
  params, opt, _ = step(params, SGD.init(params), batch, jax.random.key(0))  # with some momentum
  batch["x"][5, 1] = bad
  new, new_opt, metrics = step(params, opt, batch, jax.random.key(1), microbatches=microbatches)
  assert equal((params, opt), (new, new_opt))
  assert tuple(map(float, metrics["skipped"])) == (1, 1)
  assert not np.isfinite(metrics["loss"][0])
  batch["x"][5, 1] = 0
  new, _, metrics = step(new, new_opt, batch, jax.random.key(2))  # the next update is made
  assert not equal(params, new) and metrics["skipped"][0] == 0


def test_a_finite_loss_with_an_infinite_gradient_is_skipped():
  def loss(params, batch, key):
    return (jnp.sqrt(params), jnp.float32(1)), {}

  update = jax.jit(partial(minimize, SGD, loss))
  zero = np.float32(0)
  params, _, metrics = update(zero, SGD.init(zero), np.zeros(1), jax.random.key(0))
  assert params == 0 and metrics["skipped"][0] == 1 and metrics["loss"][0] == 0


def test_a_batch_of_nothing_leaves_parameters_alone(step):
  params = make_params()
  new, _, metrics = step(params, SGD.init(params), make_batch([0] * ROWS), jax.random.key(0))
  assert equal(params, new)
  assert metrics["skipped"][0] == 0 and metrics["loss"][1] == 0


@pytest.mark.parametrize("microbatches", [1, 2])
def test_dtypes_and_shapes_of_parameters_and_optimiser_stay(microbatches):
  def loss(params, batch, key):
    total = sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in params.values())
    return (total, jnp.float32(2)), {}

  shape = jax.ShapeDtypeStruct
  params = dict(half=shape((3,), jnp.bfloat16), full=shape((3,), jnp.float32))
  tx = optax.adamw(0.1)
  opt = jax.eval_shape(tx.init, params)
  update = partial(minimize, tx, loss, microbatches=microbatches)
  out = jax.eval_shape(update, params, opt, shape((2,), jnp.float32), jax.random.key(0))
  assert out[:2] == (params, opt)


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


def toy_method():
  """Noisy SGD from random weights, with a teacher that any seed may read and a count by step."""

  def init(key, pretrained):
    w = jax.random.normal(key, (WIDTH,))
    state = dict(step=jnp.int32(0), student=dict(w=w, b=jnp.float32(0)))
    return dict(state, opt=SGD.init(state["student"])), dict(teacher=jnp.full(WIDTH, 2.0))

  def step(state, frozen, batch, key):
    key_noise, key_step = jax.random.split(key)
    noise = jax.random.normal(key_noise, (WIDTH,))
    batch = dict(batch, y=batch["y"] + batch["x"] @ (frozen["teacher"] + noise))

    def updated(state):
      args = state["student"], state["opt"], batch, key_step
      student, opt, metrics = minimize(SGD, loss_fn, *args)
      return dict(state, student=student, opt=opt), metrics["loss"]

    def rest(state):
      return state, (jnp.float32(0), jnp.float32(0))

    state, loss = jax.lax.cond(state["step"] % 2 == 0, updated, rest, state)
    return dict(state, step=state["step"] + 1), dict(loss=loss)

  return Method(init, step)


def test_each_of_several_seeds_is_a_run_of_its_own_key():
  one, batch = toy_method(), make_batch(UNEVEN)
  many = over_seeds(one, 3)
  state, frozen = jax.jit(many.init)(jax.random.key(0), {})
  assert state["step"].shape == () and state["student"]["w"].shape == (3, WIDTH)
  assert frozen["teacher"].shape == (WIDTH,)  # shared
  step, step_one = jax.jit(many.step), jax.jit(one.step)
  alone = [one.init(key, {})[0] for key in jax.random.split(jax.random.key(0), 3)]
  for t in range(3):
    key = jax.random.fold_in(jax.random.key(1), t)
    state, metrics = step(state, frozen, batch, key)
    pairs = [
      step_one(s, frozen, batch, k) for s, k in zip(alone, jax.random.split(key, 3), strict=True)
    ]
    alone = [s for s, _ in pairs]
    want = sum(np.array(jax.device_get(m["loss"])) for _, m in pairs)
    np.testing.assert_allclose(np.array(metrics["loss"]), want, rtol=1e-5)
  assert int(state["step"]) == 3 and step._cache_size() == 1
  for i, single in enumerate(alone):
    for name in ("student", "opt"):
      of_seed = jax.tree.map(lambda x, i=i: x[i], state[name])
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), of_seed, single[name]
      )
  assert not np.allclose(*state["student"]["w"][:2])  # the seeds differ
  # the turn is not a matter of seeds: a conditional stays one
  text = str(jax.make_jaxpr(many.step)(state, frozen, batch, jax.random.key(0)))
  assert "cond[" in text


def test_several_seeds_need_a_step_that_is_all():
  with pytest.raises(ConfigError, match="one seed at a time"):
    over_seeds(toy_method()._replace(prepare=lambda *args: args[2]), 2)
