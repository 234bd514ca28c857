"""The transformer against a slow one in numpy, and against itself by other routes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from distill_jax.models import transformer

FAMILIES = dict(
  llama=dict(kv_heads=2, tie_embeddings=False),
  llama3=dict(
    kv_heads=2, rope_theta=50.0, rope_scaling="llama3", rope_factor=8.0, rope_original=16
  ),
  qwen2=dict(kv_heads=1, qkv_bias=True),
  qwen3=dict(kv_heads=2, qk_norm=True),
  mistral=dict(kv_heads=2, sliding_window=3, tie_embeddings=False),
  gemma2=dict(
    kv_heads=2,
    activation="gelu",
    norm_plus_one=True,
    sandwich_norms=True,
    scale_embeddings=True,
    logit_softcap=2.0,
    attention_softcap=1.0,
    sliding_window=3,
    sliding_pattern=2,
  ),
  gemma3=dict(
    kv_heads=4,
    activation="gelu",
    norm_plus_one=True,
    sandwich_norms=True,
    scale_embeddings=True,
    qk_norm=True,
    sliding_window=4,
    sliding_pattern=2,
    rope_theta=1e2,
    rope_local_theta=1e4,
    rope_scaling="linear",
    rope_factor=8.0,
    query_scalar=9.0,
  ),
  gpt2=dict(kind="gpt2", activation="gelu", max_positions=8),
)
every_family = pytest.mark.parametrize("family", FAMILIES)
telling_families = pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2"])


def small(**changes):
  config = transformer.default_config()
  config.update(vocab_size=13, layers=2, width=16, heads=4, kv_heads=4, head_dim=6, mlp_width=24)
  config.update(changes)
  return config


@functools.cache
def build(family, **changes):
  """Config, model with compiled functions, and parameters where nothing is 0 or 1."""
  config = small(**FAMILIES[family], **changes)
  model = transformer.make(config)
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    center = 1.0 if "norm" in jax.tree_util.keystr(path) and not config.norm_plus_one else 0.0
    return np.asarray(center + 0.3 * rng.normal(size=leaf.shape), np.float32)

  params = jax.tree.map_with_path(fill, jax.eval_shape(model.init, jax.random.key(0)))
  model = model._replace(hidden=jax.jit(model.hidden), decode=jax.jit(model.decode))
  return config, model, params


def draw_tokens(seed=0):
  """[2, 8], one shape for all tests: one compilation."""
  return np.random.default_rng(seed).integers(0, 13, (2, 8))


def slow_logits(config, params, tokens):
  """One sequence [T] -> logits [T, V], in float64, a query at a time."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  plus = 1.0 if config.norm_plus_one else 0.0
  gpt2 = config.kind == "gpt2"

  def norm(x, weight, bias=None):
    if bias is not None:
      x = x - x.mean(-1, keepdims=True)
      return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config.norm_eps) * weight + bias
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config.norm_eps) * (weight + plus)

  def cap(x, c):
    return c * np.tanh(x / c) if c else x

  def activation(x):
    if config.activation == "silu":
      return x / (1 + np.exp(-x))
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

  def rotate(x, position, theta, scaled):
    half = config.head_dim // 2
    rate = theta ** (-np.arange(half) / half)
    if scaled and config.rope_scaling == "linear":
      rate = rate / config.rope_factor
    if scaled and config.rope_scaling == "llama3":
      wave, low, high = 2 * np.pi / rate, config.rope_low, config.rope_high
      smooth = (config.rope_original / wave - low) / (high - low)
      between = (1 - smooth) * rate / config.rope_factor + smooth * rate
      rate = np.where(
        wave < config.rope_original / high,
        rate,
        np.where(wave > config.rope_original / low, rate / config.rope_factor, between),
      )
    turn = np.exp(1j * position * rate)
    pairs = (x[:half] + 1j * x[half:]) * turn
    return np.concatenate([pairs.real, pairs.imag])

  x = params["embed"]["tokens"][np.asarray(tokens)]
  x = x * np.sqrt(config.width) if config.scale_embeddings else x
  x = x + params["embed"]["positions"][: len(x)] if gpt2 else x
  group = config.heads // config.kv_heads
  for i in range(config.layers):
    p = {name: w[i] for name, w in params["layers"].items()}
    last = config.sliding_pattern and (i + 1) % config.sliding_pattern == 0
    slides = config.sliding_window and not last
    local = slides and config.rope_local_theta
    theta = local or config.rope_theta
    y = norm(x, p["attention_norm"], p.get("attention_norm_bias"))
    mixed = np.zeros_like(x)
    for h in range(config.heads):
      q, k, v = y @ p["query"][:, h], y @ p["key"][:, h // group], y @ p["value"][:, h // group]
      if config.qkv_bias or gpt2:
        q, k = q + p["query_bias"][h], k + p["key_bias"][h // group]
        v = v + p["value_bias"][h // group]
      if config.qk_norm:
        q, k = norm(q, p["query_norm"]), norm(k, p["key_norm"])
      for t in range(len(x)):
        first = max(0, t - config.sliding_window + 1) if slides else 0
        seen = range(first, t + 1)
        turn = (lambda x, at: x) if gpt2 else lambda x, at: rotate(x, at, theta, not local)
        scores = np.array([turn(q[t], t) @ turn(k[s], s) for s in seen])
        scores = cap(
          scores / np.sqrt(config.query_scalar or config.head_dim), config.attention_softcap
        )
        weights = np.exp(scores) / np.exp(scores).sum()
        mixed[t] += weights @ v[first : t + 1] @ p["output"][h]
    mixed = mixed + p["output_bias"] if gpt2 else mixed
    x = x + (norm(mixed, p["post_attention_norm"]) if config.sandwich_norms else mixed)
    y = norm(x, p["mlp_norm"], p.get("mlp_norm_bias"))
    if gpt2:
      y = activation(y @ p["up"] + p["up_bias"]) @ p["down"] + p["down_bias"]
    else:
      y = (activation(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
    x = x + (norm(y, p["post_mlp_norm"]) if config.sandwich_norms else y)
  head = params["embed"]["tokens"].T if config.tie_embeddings else params["head"]
  x = norm(x, params["final_norm"], params.get("final_norm_bias"))
  return cap(x @ head, config.logit_softcap)


@every_family
def test_equals_the_slow_transformer(family):
  config, model, params = build(family)
  tokens = draw_tokens()
  logits = model.logits(params, model.hidden(params, tokens))
  assert logits.shape == (2, 8, 13) and logits.dtype == jnp.float32
  for row in range(2):
    np.testing.assert_allclose(logits[row], slow_logits(config, params, tokens[row]), atol=2e-5)


def test_parameters_have_the_documented_names_and_shapes():
  config = small(kv_heads=2, qkv_bias=True, qk_norm=True, sandwich_norms=True, tie_embeddings=False)
  params = jax.eval_shape(transformer.make(config).init, jax.random.key(0))
  shapes = dict(embed=dict(tokens=(13, 16)), final_norm=(16,), head=(16, 13))
  shapes["layers"] = dict(
    attention_norm=(2, 16),
    post_attention_norm=(2, 16),
    mlp_norm=(2, 16),
    post_mlp_norm=(2, 16),
    query=(2, 16, 4, 6),
    key=(2, 16, 2, 6),
    value=(2, 16, 2, 6),
    output=(2, 4, 6, 16),
    query_bias=(2, 4, 6),
    key_bias=(2, 2, 6),
    value_bias=(2, 2, 6),
    query_norm=(2, 6),
    key_norm=(2, 6),
    gate=(2, 16, 24),
    up=(2, 16, 24),
    down=(2, 24, 16),
  )
  assert jax.tree.map(lambda x: x.shape, params) == shapes
  assert type(params["layers"]) is dict
  plain = jax.eval_shape(transformer.make(small()).init, jax.random.key(0))
  assert "head" not in plain and len(plain["layers"]) == 9


@pytest.mark.parametrize("tied", [True, False])
def test_starts_near_the_uniform_distribution(tied):
  config = small(vocab_size=512, width=128, heads=4, head_dim=32, tie_embeddings=tied)
  model = transformer.make(config)
  params = jax.jit(model.init)(jax.random.key(0))
  tokens = np.random.default_rng(0).integers(0, 512, (4, 33))
  logits = jax.jit(lambda x: model.logits(params, model.hidden(params, x)))(tokens[:, :-1])
  log_q = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1)
  assert abs(-log_q.mean() - np.log(512)) < 0.1
  assert model.tied == tied and model.head(params).shape == ((512, 128) if tied else (128, 512))
  deviation = params["layers"]["up"].std() * np.sqrt(128)
  assert abs(deviation - 1) < 0.05


@every_family
def test_a_token_does_not_see_the_future(family):
  _, model, params = build(family)
  tokens = draw_tokens()
  changed = tokens.copy()
  changed[:, 5] = (tokens[:, 5] + 1) % 13
  a, b = model.hidden(params, tokens), model.hidden(params, changed)
  assert (a[:, :5] == b[:, :5]).all()
  assert (a[:, 5] != b[:, 5]).any()


@telling_families
def test_cache_gives_what_the_whole_sequence_gives(family):
  """Rows with prompts of 2 and 5 tokens: a padded prefill, then the rest in more calls."""
  _, model, params = build(family)
  tokens, ends = draw_tokens(), np.array([2, 5])
  whole = model.hidden(params, tokens)
  prompts = np.where(np.arange(5) < ends[:, None], tokens[:, :5], 0)
  starts = np.zeros_like(ends)
  hidden, cache = model.decode(params, prompts, model.init_cache(2, 9), places(starts, 5))
  for row, end in enumerate(ends):
    np.testing.assert_allclose(hidden[row, :end], whole[row, :end], atol=1e-5)
  for size in (1, 2):
    at = places(ends, size)
    hidden, cache = model.decode(params, np.take_along_axis(tokens, at, 1), cache, at)
    expected = np.take_along_axis(np.asarray(whole), at[..., None], 1)
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
    ends = ends + size


def places(starts, size):
  return starts[:, None] + np.arange(size)


def test_a_decode_step_updates_the_cache_in_place():
  model = transformer.make(small(layers=8))
  params = jax.eval_shape(model.init, jax.random.key(0))
  cache = jax.eval_shape(lambda: model.init_cache(4, 256))
  one = jax.ShapeDtypeStruct((4, 1), jnp.int32)
  step = jax.jit(model.decode, donate_argnums=2).lower(params, one, cache, one).compile()
  memory = step.memory_analysis()
  size = 2 * cache["key"].size * 4
  assert memory.alias_size_in_bytes >= size
  assert memory.temp_size_in_bytes < size / 2


@telling_families
def test_packed_sequences_do_not_see_each_other(family):
  _, model, params = build(family)
  packed, alone = draw_tokens(), draw_tokens(1)
  segments = np.repeat([[1] * 3 + [2] * 5], 2, axis=0)
  alone[:, :5] = packed[:, 3:]  # what follows does not matter: tokens do not see the future
  first, second = model.hidden(params, packed)[:, :3], model.hidden(params, alone)[:, :5]
  apart = np.concatenate([first, second], 1)
  positions = np.repeat([[0, 1, 2, 0, 1, 2, 3, 4]], 2, axis=0)
  restarted = model.hidden(params, packed, positions=positions, segment_ids=segments)
  np.testing.assert_allclose(restarted, apart, atol=1e-5)
  if family != "gpt2":  # rotations are relative
    running = model.hidden(params, packed, segment_ids=segments)
    np.testing.assert_allclose(running, apart, atol=1e-4)


@telling_families
def test_features_are_those_of_the_layers(family):
  """Each layer alone, run on the residual before it, gives its own features."""
  config, model, params = build(family)
  tokens = draw_tokens()
  run = jax.jit(functools.partial(transformer.make(config).hidden, features=True))
  hidden, values = run(params, tokens)
  np.testing.assert_array_equal(hidden, model.hidden(params, tokens))
  heads, keys, size = config.heads, config.kv_heads, config.head_dim
  widths = dict(residual=(16,), query=(heads, size), key=(keys, size), value=(keys, size))
  widths |= dict(heads=(heads, size), units=(24,))
  assert {k: v.shape for k, v in values.items()} == {k: (2, 2, 8, *w) for k, w in widths.items()}
  layers = params["layers"]
  down = np.einsum("lbtf,lfd->lbtd", values["units"], layers["down"])
  output = np.einsum("lbthk,lhkd->lbtd", values["heads"], layers["output"])
  if config.kind == "gpt2":
    down, output = (
      down + layers["down_bias"][:, None, None],
      output + layers["output_bias"][:, None, None],
    )
  if config.sandwich_norms:
    down = rms(config, down) * (layers["post_mlp_norm"][:, None, None] + config.norm_plus_one)
    output = rms(config, output) * (
      layers["post_attention_norm"][:, None, None] + config.norm_plus_one
    )
  step = values["residual"][1] - values["residual"][0]
  np.testing.assert_allclose(step, (down + output)[1], atol=2e-5)
  if config.kind == "llama" and not config.qk_norm:
    y = rms(config, values["residual"][0]) * (layers["attention_norm"][1] + config.norm_plus_one)
    for name in ("query", "key", "value"):
      expected = np.einsum("btd,dhk->bthk", y, layers[name][1])
      np.testing.assert_allclose(values[name][1], expected, atol=2e-5)


def rms(config, x):
  return x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + config.norm_eps)


def test_layers_that_see_all_can_be_named():
  named = small(layers=3, sliding_window=3, full_layers=(2,))
  every = small(layers=3, sliding_window=3, sliding_pattern=3)
  params = transformer.make(every).init(jax.random.key(0))
  a, b = (transformer.make(c).hidden(params, draw_tokens()) for c in (named, every))
  np.testing.assert_array_equal(a, b)
  slides = transformer.make(small(layers=3, sliding_window=3)).hidden(params, draw_tokens())
  assert (np.asarray(slides) != a).any()


@functools.cache
def loss_and_gradient(remat):
  _, model, params = build("gemma2", remat=remat)
  tokens = draw_tokens()

  def loss(params):
    return jnp.mean(model.logits(params, model.hidden(params, tokens)) ** 2)

  return loss, params, jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient(remat):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    loss_and_gradient("none")[2],
    loss_and_gradient(remat)[2],
  )


@pytest.mark.parametrize("remat", ["none", "full"])
def test_forward_mode_agrees_with_reverse_mode(remat):
  loss, params, gradient = loss_and_gradient(remat)
  direction = jax.tree.map(lambda x: np.cos(np.arange(x.size, dtype="f4")).reshape(x.shape), params)
  _, forward = jax.jit(lambda p, v: jax.jvp(loss, (p,), (v,)))(params, direction)
  reverse = sum(jax.tree.leaves(jax.tree.map(np.vdot, gradient, direction)))
  np.testing.assert_allclose(forward, reverse, rtol=1e-4)


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_bfloat16_stays_near_float32(family):
  _, model, params = build(family)
  _, half, _ = build(family, dtype="bfloat16")
  tokens = draw_tokens()
  hidden = half.hidden(params, tokens)
  assert hidden.dtype == half.head(params).dtype == jnp.bfloat16
  logits = half.logits(params, hidden)
  assert logits.dtype == jnp.float32
  exact = model.logits(params, model.hidden(params, tokens))
  assert jnp.abs(logits - exact).mean() < 0.03 * jnp.abs(exact).mean()
  cached, cache = half.decode(params, tokens, half.init_cache(2, 8), places(np.zeros(2, int), 8))
  assert cache["key"].dtype == cached.dtype == jnp.bfloat16
  np.testing.assert_allclose(cached.astype("f4"), hidden.astype("f4"), atol=0.1)


def test_parameters_keep_their_own_dtype():
  model = transformer.make(small(dtype="bfloat16", param_dtype="float32"))
  params = jax.eval_shape(model.init, jax.random.key(0))
  loss = lambda p: model.hidden(p, draw_tokens()).astype(jnp.float32).sum()  # noqa: E731
  gradient = jax.eval_shape(jax.grad(loss), params)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((params, gradient)))
  half = jax.eval_shape(transformer.make(small(param_dtype="bfloat16")).init, jax.random.key(0))
  assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(half))


def test_eight_devices_give_what_one_gives():
  """Batch over data and fsdp, width over fsdp, heads and feed-forward over tensor."""
  _, model, params = build("llama")
  tokens = np.concatenate([draw_tokens(), draw_tokens(1)])
  auto = (jax.sharding.AxisType.Auto,) * 3
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=auto)
  specs = jax.tree.map(lambda x: jax.P(), params)
  specs["embed"]["tokens"] = jax.P(None, "fsdp")
  for name in ("query", "key", "value", "gate", "up"):
    specs["layers"][name] = jax.P(None, "fsdp", "tensor")
  specs["layers"]["output"] = jax.P(None, "tensor", None, "fsdp")
  specs["layers"]["down"] = jax.P(None, "tensor", "fsdp")
  sharded = jax.device_put(params, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))
  rows = NamedSharding(mesh, jax.P(("data", "fsdp")))

  def loss(params, tokens):
    hidden = model.hidden(params, tokens)
    return jnp.mean(model.logits(params, hidden) ** 2), hidden

  step = jax.jit(jax.value_and_grad(loss, has_aux=True))
  with jax.set_mesh(mesh):
    spread = step(sharded, jax.device_put(tokens, rows))
    odd = model.hidden(sharded, tokens[:3])  # a batch that the mesh does not divide
  hidden = spread[0][1]
  assert hidden.sharding.shard_shape(hidden.shape) == (1, 8, 16)  # rows are split, width is not
  alone = step(params, tokens)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), spread, alone)
  np.testing.assert_allclose(odd, hidden[:3], atol=1e-5)


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(heads=6, kv_heads=4), "heads (6) must be a multiple of kv_heads (4)"),
    (dict(head_dim=7), "head_dim must be even"),
    (dict(activation="relu"), "activation must be one of silu, gelu, got 'relu'"),
    (dict(remat="some"), "remat must be one of none, full, dots, got 'some'"),
    (dict(dtype="bf16"), "dtype must be one of float32, bfloat16, got 'bf16'"),
    (dict(attention="flash"), "attention must be one of xla, cudnn"),
    (dict(sliding_pattern=2), "need a sliding_window"),
    (dict(full_layers=(1,)), "need a sliding_window"),
    (dict(kind="bert"), "kind must be one of llama, gpt2, got 'bert'"),
    (dict(rope_scaling="yarn"), "rope_scaling must be one of none, linear, llama3, got 'yarn'"),
    (dict(attention="cudnn", attention_softcap=5.0), "needs attention 'xla'"),
  ],
)
def test_says_what_is_wrong_with_a_config(changes, message):
  with pytest.raises(ValueError) as error:
    transformer.make(small(**changes))
  assert message in str(error.value) and "\n" not in str(error.value)
