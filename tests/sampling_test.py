"""The sampler against rollouts without a cache, exact distributions and its own promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import sampling
from distill_jax.models import transformer

V, N = 11, 6


@functools.cache
def tiny():
  """A model with a cache, and parameters sharp enough that the likeliest tokens differ."""
  config = transformer.default_config()
  config.update(vocab_size=V, layers=2, width=16, heads=2, kv_heads=1, head_dim=8, mlp_width=16)
  config.update(sliding_window=4, sliding_pattern=2)
  model = transformer.make(config)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  params = jax.tree.map(lambda x: np.asarray(rng.normal(size=x.shape), np.float32), shapes)
  return model, params


def bigram(logits):
  """A model whose next-token logits [V] depend on the last token alone: row `token` of `logits`."""

  def decode(params, tokens, cache, positions):
    return params[tokens], cache

  return transformer.Model(
    init=lambda key: jnp.asarray(logits),
    hidden=lambda params, tokens: params[tokens],
    decode=decode,
    init_cache=lambda batch, length: {},
    head=lambda params: jnp.eye(len(logits)),
    logits=lambda params, hidden: hidden,
    vocabulary=len(logits),
    logit_softcap=0.0,
    tied=False,
  )


@functools.cache
def sampler(**options):
  model, _ = tiny()
  options = dict(new_tokens=N) | options

  def run(params, prompts, key, lengths):
    return sampling.sample(model, params, prompts, key, lengths=lengths, **options)

  return jax.jit(run)


PROMPTS = np.array([[3, 1, 4, 1], [5, 9, 0, 0], [2, 0, 0, 0]])
LENGTHS = np.array([4, 2, 1])


def test_greedy_is_the_likeliest_token_of_a_rollout_without_a_cache():
  model, params = tiny()
  out = sampler(temperature=0)(params, PROMPTS, jax.random.key(0), LENGTHS)
  assert out.tokens.shape == out.generated.shape == (3, 4 + N)
  hidden = jax.jit(model.hidden)
  tokens = np.pad(PROMPTS, ((0, 0), (0, N)))
  for row, length in enumerate(LENGTHS):
    for t in range(length, length + N):  # tokens do not see what follows
      tokens[row, t] = model.logits(params, hidden(params, tokens)[row, t - 1]).argmax()
  np.testing.assert_array_equal(out.tokens, tokens)
  place = np.arange(4 + N) - LENGTHS[:, None]
  np.testing.assert_array_equal(out.generated, (place >= 0) & (place < N))
  np.testing.assert_array_equal(out.lengths, LENGTHS + N)
  assert len(set(tokens[0, 4:])) > 2  # the comparison means something


def test_a_row_does_not_depend_on_the_others_or_on_padding():
  _, params = tiny()
  run, key = sampler(), jax.random.key(1)
  together = run(params, PROMPTS, key, LENGTHS)
  others = np.where(np.arange(3)[:, None] == 1, PROMPTS, (PROMPTS + 1) % V)
  others[1, 2:] = 7  # padding too
  changed = run(params, others, key, np.array([1, 2, 4]))
  np.testing.assert_array_equal(together.tokens[1, :8], changed.tokens[1, :8])
  alone = run(params, PROMPTS[:1], key, LENGTHS[:1])
  np.testing.assert_array_equal(together.tokens[:1], alone.tokens)
  assert (
    together.tokens[:, 4:] != run(params, PROMPTS, jax.random.key(2), LENGTHS).tokens[:, 4:]
  ).any()
  twins = run(params, PROMPTS[[0, 0, 0]], key, LENGTHS[[0, 0, 0]])
  assert (twins.tokens[0] != twins.tokens[1]).any()


def test_eight_devices_sample_what_one_samples():
  _, params = tiny()
  rows = np.arange(16) % 3
  auto = (jax.sharding.AxisType.Auto,) * 3
  mesh = jax.make_mesh((2, 4, 1), ("data", "fsdp", "tensor"), axis_types=auto)
  run, key = sampler(temperature=0), jax.random.key(0)
  alone = run(params, PROMPTS[rows], key, LENGTHS[rows])
  split = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
  with jax.set_mesh(mesh):
    out = run(
      params, jax.device_put(PROMPTS[rows], split), key, jax.device_put(LENGTHS[rows], split)
    )
  np.testing.assert_array_equal(out.tokens, alone.tokens)
  assert out.tokens.sharding.shard_shape(out.tokens.shape) == (2, 4 + N)


def test_stop_tokens_are_kept_and_end_their_row():
  _, params = tiny()
  greedy = sampler(temperature=0)(params, PROMPTS, jax.random.key(0), LENGTHS)
  ours = np.asarray(greedy.tokens)
  stop = int(ours[0, 4 + 1])  # the second token generated in row 0
  out = sampler(temperature=0, stop_tokens=(stop, V + 5))(
    params, PROMPTS, jax.random.key(0), LENGTHS
  )
  for row, length in enumerate(LENGTHS):
    new = ours[row, length : length + N]
    count = list(new).index(stop) + 1 if stop in new else N
    end = length + count
    np.testing.assert_array_equal(out.tokens[row, :end], ours[row, :end])
    assert not out.tokens[row, end:].any() and not out.generated[row, end:].any()
    assert out.generated[row, length:end].all() and not out.generated[row, :length].any()
    assert out.lengths[row] == end


def test_ends_when_every_row_has_stopped():
  successor = bigram(np.roll(np.eye(V), 1, axis=1))  # greedy: token + 1
  calls = []

  def decode(params, tokens, cache, positions):
    jax.debug.callback(lambda: calls.append(1))
    return successor.decode(params, tokens, cache, positions)

  model = successor._replace(decode=decode)
  sample = functools.partial(
    sampling.sample, model, model.init(None), temperature=0, new_tokens=9, stop_tokens=(7, 8)
  )
  out = jax.jit(sample)(np.array([[4], [6]]), jax.random.key(0))
  jax.effects_barrier()
  np.testing.assert_array_equal(out.tokens[:, :5], [[4, 5, 6, 7, 0], [6, 7, 0, 0, 0]])
  assert len(calls) == 3  # the prefill and two of the eight steps


@pytest.mark.parametrize(
  "options",
  [
    dict(),
    dict(temperature=0.5),
    dict(top_k=3),
    dict(top_p=0.6),
    dict(temperature=2.0, top_k=4, top_p=0.7),
  ],
)
def test_frequencies_are_the_probabilities(options):
  """First and second token of 20,000 rows, within 5 standard deviations."""
  rows = 20_000
  logits = np.random.default_rng(0).normal(size=(5, 5)).astype("f4")
  model = bigram(logits)
  sample = functools.partial(sampling.sample, model, new_tokens=2, **options)
  out = jax.jit(sample)(logits, np.full((rows, 1), 2), jax.random.key(3))
  exact = nucleus(logits, **options)
  first, second = np.asarray(out.tokens)[:, 1:].T
  joint = exact[2][:, None] * exact
  seen = np.zeros((5, 5))
  np.add.at(seen, (first, second), 1 / rows)
  assert (np.abs(seen - joint) <= 5 * np.sqrt(joint * (1 - joint) / rows)).all()


def nucleus(logits, temperature=1.0, top_k=0, top_p=1.0):
  """Probabilities by the words of the docstring, a token at a time, in float64."""
  probs = np.exp(np.asarray(logits, np.float64) / temperature)
  for row in probs:
    order = np.argsort(-row)
    row[order[top_k or len(row) :]] = 0
    row /= row.sum()
    size = next(n for n in range(1, len(row) + 1) if row[order[:n]].sum() >= top_p - 1e-9)
    row[order[size:]] = 0
    row /= row.sum()
  return probs


def kept(probs, **options):
  logits = sampling.filter_logits(jnp.log(jnp.array(probs)), **options)
  return list(np.flatnonzero(np.isfinite(logits)))


def test_filters_keep_what_they_say():
  probs = [0.1, 0.4, 0.2, 0.3]
  assert kept(probs) == [0, 1, 2, 3]
  assert kept(probs, top_k=2) == [1, 3]
  assert kept(probs, top_k=9) == [0, 1, 2, 3]
  assert kept(probs, top_p=0.39) == [1]
  assert kept(probs, top_p=0.41) == [1, 3]
  assert kept(probs, top_p=0.75) == [1, 2, 3]
  assert kept(probs, top_p=1e-6) == [1]  # one always
  assert kept(probs, top_k=2, top_p=0.5) == [1]  # 0.4 is 4/7 of what top-k left
  assert kept([0.25] * 4, top_k=1) == [0, 1, 2, 3]  # equals stay together
  assert kept([0.5, 0.0, 0.5], top_p=0.9) == [0, 2]
  assert kept(probs, temperature=1e-3, top_p=0.9) == [1]
  half = sampling.filter_logits(jnp.log(jnp.array(probs)), temperature=2.0)
  np.testing.assert_allclose(half, np.log(probs) / 2, rtol=1e-6)


def test_can_stand_in_a_loss():
  """Reverse mode does not pass a while loop; sampling does not ask it to."""
  model, params = tiny()

  def loss(params):
    out = sampling.sample(model, params, jnp.array(PROMPTS), jax.random.key(0), new_tokens=2)
    return jnp.sum(model.hidden(params, out.tokens) ** 2)

  jax.eval_shape(jax.grad(loss), params)


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(new_tokens=0), "new_tokens must be at least 1, got 0"),
    (dict(temperature=-1.0), "temperature must be at least 0, got -1.0"),
    (dict(top_p=0.0), "top_p must be in (0, 1], got 0.0"),
    (dict(top_k=-1), "top_k must be at least 0, got -1"),
  ],
)
def test_says_what_is_out_of_range(options, message):
  model = bigram(np.eye(3))
  options = dict(new_tokens=1) | options
  with pytest.raises(ValueError) as error:
    sampling.sample(model, model.init(None), jnp.zeros((1, 1), int), jax.random.key(0), **options)
  assert str(error.value) == message
