"""Schedules at exact steps, optimisers against optax and by hand, averages in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from distill_jax import optim
from distill_jax.config import ConfigError

STEPS = 50
PARAMS = dict(
  layers=dict(up=np.full((2, 2, 3), 0.5, "f4"), mlp_norm=np.full((2, 3), 0.5, "f4")),
  bias=np.full(3, 0.5, "f4"),
)


def config(**changes):
  values = dict(
    name="adamw",
    lr=0.1,
    schedule="constant",
    warmup=0,
    final=0.1,
    b1=0.9,
    b2=0.99,
    eps=1e-8,
    weight_decay=0.0,
    no_decay="norm|bias",
    clip_norm=0.0,
  )
  return ConfigDict({**values, **changes})


def rates(cases):
  """The learning rate of each update, for each (steps, changes) of `cases`; compiled together."""
  schedules = [(steps, optim.make_schedule(config(**changes), steps)) for steps, changes in cases]
  return jax.jit(lambda: [jax.vmap(s)(jnp.arange(steps)) for steps, s in schedules])()


def gradients(seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), PARAMS)


def updates(tx, steps=3):
  """The updates that a transformation makes of the same gradients from the same parameters."""

  @jax.jit
  def run():
    state, made = tx.init(PARAMS), []
    for step in range(steps):
      update, state = tx.update(gradients(step), state, PARAMS)
      made.append(update)
    return made

  return run()


def assert_close(a, b, rtol=1e-6):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("warmup", [0, 10])
def test_every_schedule_at_every_step(warmup):
  done = np.arange(warmup + 1, STEPS + 1)  # updates made, this one included
  part = (done - warmup) / (STEPS - warmup)
  fall = (STEPS - warmup) // 5
  expected = dict(
    constant=np.ones_like(part),
    linear=1 - 0.9 * part,
    cosine=0.1 + 0.9 * (1 + np.cos(np.pi * part)) / 2,
    wsd=1 - 0.9 * np.clip((done - (STEPS - fall)) / fall, 0, 1),
  )
  assert set(expected) == set(optim.SCHEDULES)
  got = rates([(STEPS, dict(schedule=name, warmup=warmup)) for name in expected])
  for rate, (schedule, factor) in zip(got, expected.items(), strict=True):
    rise = np.arange(1, warmup + 1) / max(warmup, 1)  # the first update is not empty
    expected_rate = 0.1 * np.concatenate([rise, factor])
    np.testing.assert_allclose(rate, expected_rate, rtol=2e-6, err_msg=schedule)


def test_the_last_update_is_at_the_end_of_the_schedule():
  cases = [
    (steps, dict(schedule=name, warmup=warmup))
    for name in ("linear", "cosine", "wsd")
    for steps, warmup in ((1, 0), (2, 1), (3, 1), (7, 2), (100, 10))
  ]
  for case, got in zip(cases, rates(cases), strict=True):
    assert got[-1] == pytest.approx(0.01, rel=1e-5), case


def test_a_warm_up_longer_than_the_run_is_cut():
  (got,) = rates([(4, dict(schedule="cosine", warmup=100))])
  np.testing.assert_allclose(got, [0.025, 0.05, 0.075, 0.1], rtol=1e-6)


def test_adamw_is_optax_adamw_on_what_the_mask_leaves():
  mask = dict(layers=dict(up=True, mlp_norm=False), bias=False)
  ours = optim.make(config(weight_decay=0.3, b2=0.95, schedule="linear", warmup=1), STEPS)
  rate = [0.1, *(0.1 * (1 - 0.9 * np.arange(1, 3) / 49))]  # warm, then falling
  theirs = optax.adamw(lambda n: jnp.array(rate)[n], 0.9, 0.95, 1e-8, weight_decay=0.3, mask=mask)
  assert_close(updates(ours), updates(theirs), rtol=1e-5)


def test_decay_moves_matrices_alone_and_those_that_no_decay_does_not_name():
  cases = {"norm|bias": {"up"}, "^$": {"up", "mlp_norm"}, "layers": set()}

  @jax.jit
  def first_updates():
    txs = [optim.make(config(weight_decay=0.3, no_decay=regex), STEPS) for regex in cases]
    txs.append(optim.make(config(), STEPS))
    return [tx.update(gradients(), tx.init(PARAMS), PARAMS)[0] for tx in txs]

  *made, without = [{**u["layers"], "bias": u["bias"]} for u in first_updates()]
  for (regex, decayed), update in zip(cases.items(), made, strict=True):
    for name, value in without.items():
      expected = value - (0.1 * 0.3 * 0.5 if name in decayed else 0)  # lr times decay times value
      np.testing.assert_allclose(update[name], expected, rtol=1e-5, err_msg=f"{regex} {name}")


def test_sgd_by_hand():
  first, second = gradients(0)["bias"], gradients(1)["bias"]
  plain = updates(optim.make(config(name="sgd", b1=0.0), STEPS), 2)
  momentum = updates(optim.make(config(name="sgd", b1=0.5), STEPS), 2)
  np.testing.assert_allclose(plain[1]["bias"], -0.1 * second, rtol=1e-6)
  np.testing.assert_allclose(momentum[1]["bias"], -0.1 * (second + 0.5 * first), rtol=1e-5)
  decayed = updates(optim.make(config(name="sgd", weight_decay=0.2), STEPS), 1)[0]["layers"]
  np.testing.assert_allclose(
    decayed["up"], -0.1 * (gradients()["layers"]["up"] + 0.2 * 0.5), rtol=1e-5
  )


def test_adam_and_lion_are_optax():
  adam = optim.make(config(name="adam", b1=0.8), STEPS)
  assert_close(updates(adam), updates(optax.adam(0.1, 0.8, 0.99)), rtol=1e-5)
  lion = updates(optim.make(config(name="lion"), STEPS), 1)[0]  # the sign of the first gradient
  assert_close(lion, jax.tree.map(lambda g: -0.1 * np.sign(g), gradients()))


@pytest.mark.parametrize("clip_norm", [0.5, 1e3])
def test_clipping_scales_the_whole_tree_to_the_norm(clip_norm):
  made = updates(optim.make(config(name="sgd", b1=0.0, clip_norm=clip_norm), STEPS), 1)[0]
  norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients())))
  scale = min(1, clip_norm / norm)
  assert (scale < 1) == (clip_norm < 1)
  assert_close(made, jax.tree.map(lambda g: -0.1 * scale * g, gradients()), rtol=1e-5)


@pytest.mark.parametrize(
  "changes, says",
  [
    (dict(name="adamv"), "No optimiser 'adamv'. Did you mean 'adam"),
    (dict(schedule="cosin"), "No schedule 'cosin'. Did you mean 'cosine'?"),
    (dict(name="adam", weight_decay=0.1), "optim.weight_decay: adam has none"),
  ],
)
def test_mistakes_are_one_line(changes, says):
  with pytest.raises(ConfigError) as error:
    optim.make(config(**changes), STEPS)
  assert str(error.value).startswith(says) and "\n" not in str(error.value)


AVERAGES = (("power", 6.94), ("constant", 0.75), ("half_life", 8.0), ("power", 0.0))


def follow(averages, values, start):
  """The averages of `values` over time: name -> [T]."""

  @jax.jit
  def run(values, start):
    def step(ema, t_and_value):
      t, value = t_and_value
      ema = optim.ema_update(averages, ema, dict(w=value), t)
      return ema, ema

    ema = optim.ema_init(averages, dict(w=start))
    return jax.lax.scan(step, ema, (jnp.arange(len(values)), values))[1]

  out = run(np.asarray(values, "f4"), np.float32(start))
  return {name: np.asarray(tree["w"]) for name, tree in out.items()}


def test_several_averages_each_by_its_own_recursion():
  """Jit sorts the names of the averages; each must keep its own decay all the same."""
  values = np.random.default_rng(0).normal(size=40)
  got = follow(AVERAGES, values, start=3.0)
  assert set(got) == {"power_6.94", "constant_0.75", "half_life_8.0", "power_0.0"}
  for kind, value in AVERAGES:
    average, expected = 3.0, []
    for t, x in enumerate(values, 1):
      match kind:
        case "constant":
          decay = value
        case "half_life":
          decay = 2 ** (-1 / value)
        case "power":
          decay = (1 - 1 / t) ** (value + 1)
      average = decay * average + (1 - decay) * x
      expected.append(average)
    np.testing.assert_allclose(got[f"{kind}_{value}"], expected, rtol=1e-5, atol=1e-6)


def test_averages_of_a_constant_target_in_closed_form():
  got = follow(AVERAGES, np.ones(40), start=0.0)
  n = np.arange(1, 41)
  np.testing.assert_allclose(got["constant_0.75"], 1 - 0.75**n, rtol=1e-5)
  np.testing.assert_allclose(got["half_life_8.0"][[7, 15, 23]], [1 / 2, 3 / 4, 7 / 8], rtol=1e-5)
  np.testing.assert_allclose(got["power_6.94"], 1, rtol=1e-6)  # forgets where it started


def test_power_function_limits():
  """Gamma 0 is the mean; of the numbers 1 to T the average is near (g + 1) / (g + 2) T."""
  values = np.arange(1.0, 2001)
  got = follow((("power", 0.0), ("power", 3.0)), values, start=-7.0)
  np.testing.assert_allclose(got["power_0.0"], np.cumsum(values) / values, rtol=1e-4)
  assert got["power_3.0"][-1] == pytest.approx(4 / 5 * 2000, rel=1e-3)


def test_long_averages_are_not_rounded_away():
  """Decays within float32's rounding of 1: a half-life of ten million, and step ten million."""
  averages = (("half_life", 1e7), ("power", 6.94), ("constant", 1 - 1e-8))
  ema = optim.ema_init(averages, np.float32(0))
  got = jax.jit(lambda e: optim.ema_update(averages, e, np.float32(1), jnp.int32(10**7 - 1)))(ema)
  expected = [np.log(2) / 1e7, 7.94 / 1e7, 1e-8]
  np.testing.assert_allclose([got[f"{k}_{v}"] for k, v in averages], expected, rtol=1e-4)


def test_averages_are_copies_in_float32_and_stay_so():
  params = dict(half=jnp.ones(3, jnp.bfloat16), full=jnp.ones(3))
  averages = (("constant", 0.5),)
  ema = optim.ema_init(averages, params)
  assert ema["constant_0.5"]["full"] is not params["full"]
  new = jax.eval_shape(lambda e: optim.ema_update(averages, e, params, jnp.int32(0)), ema)
  for tree in (ema, new):
    assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
  assert optim.ema_init((), params) == {} == optim.ema_update((), {}, params, jnp.int32(0))


def test_an_unknown_average_is_named():
  ema = optim.ema_init((("halflife", 5.0),), np.float32(0))
  with pytest.raises(ConfigError, match="No moving average 'halflife': constant, half_life or"):
    optim.ema_update((("halflife", 5.0),), ema, np.float32(0), jnp.int32(0))
