"""The fused losses equal the unfused ones, on one device and on eight, and hold no [tokens,
vocabulary] array.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import chunks
from distill_jax.losses import divergences as d
from distill_jax.losses.linear_divergence import (
  Head,
  linear_cross_entropy,
  linear_divergence,
  linear_divergence_sum,
)
from distill_jax.losses.log_probs import token_log_probs
from distill_jax.losses.sparse import top_k_divergence
from distill_jax.losses.taid import taid_target


def taid(student, teacher, where=None):
  return d.forward_kl(student, taid_target(student, teacher, 0.4), where=where)


DIVERGENCES = {
  "forward_kl": d.forward_kl,
  "reverse_kl": d.reverse_kl,
  "generalized_js": partial(d.generalized_js, beta=0.3, temperature=2.0),
  "skew_forward_kl": d.skew_forward_kl,
  "skew_reverse_kl": d.skew_reverse_kl,
  "total_variation": d.total_variation,
  "symmetric_kl": d.symmetric_kl,
  "adaptive_kl": d.adaptive_kl,
  "alpha_beta": partial(d.alpha_beta, alpha=0.2, beta=0.7),
  "logit_mse": d.logit_mse,
  "taid": taid,
  "top_k_and_tail": partial(top_k_divergence, d.forward_kl, k=5),
  "top_k_renormalised": partial(top_k_divergence, d.reverse_kl, k=5, rest="drop"),
}


def arrays(lead=(4, 6), width=5, teacher_width=3, vocabulary=24, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 6)
  hidden = jax.random.normal(keys[0], (*lead, width), dtype)
  head = jax.random.normal(keys[1], (width, vocabulary), dtype)
  teacher = jax.random.normal(keys[2], (*lead, teacher_width), dtype)
  teacher_head = jax.random.normal(keys[3], (teacher_width, vocabulary), dtype)
  weights = jax.random.uniform(keys[4], lead) * jax.random.bernoulli(keys[5], 0.7, lead)
  return hidden, head, teacher, teacher_head, weights


def unfused(divergence, hidden, head, teacher, teacher_head, weights):
  values = divergence(hidden @ head, teacher @ teacher_head, where=weights != 0)
  return jnp.sum(values * weights)


def fused(divergence, hidden, head, teacher_hidden, teacher_head, weights, **kw):
  values = linear_divergence(
    divergence, hidden, head, teacher_hidden, teacher_head, where=weights != 0, **kw
  )
  return jnp.sum(values * weights)


def fused_sum(divergence, hidden, head, teacher, teacher_head, weights, **kw):
  return linear_divergence_sum(
    divergence, hidden, head, teacher, teacher_head, weights=weights, **kw
  )[0]


def grads(f, divergence, *args, **kw):
  def total(hidden, head):
    return f(divergence, hidden, head, *args[2:], **kw)

  return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(*args[:2])


def assert_close(a, b, tolerance=1e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("form", [fused, fused_sum])
def test_equals_unfused(name, form):
  args = arrays()
  want = grads(unfused, DIVERGENCES[name], *args)
  assert_close(grads(form, DIVERGENCES[name], *args, chunk=8), want)


@pytest.mark.parametrize(("lead", "chunk"), [((1,), 4), ((7,), 3), ((2, 5), 1), ((2, 3, 5), 12)])
def test_any_shape_and_chunk(lead, chunk):
  args = arrays(lead)
  want = grads(unfused, d.forward_kl, *args)
  assert_close(grads(fused, d.forward_kl, *args, chunk=chunk), want)
  assert_close(grads(fused_sum, d.forward_kl, *args, chunk=chunk), want)


@pytest.mark.parametrize("form", [fused, fused_sum])
def test_masked_tokens_may_hold_anything(form):
  args = arrays()
  hidden, head, teacher, teacher_head, weights = args
  bad = jnp.where((weights == 0)[..., None], jnp.nan, hidden)
  value, (hidden_grad, head_grad) = grads(
    form, d.forward_kl, bad, head, teacher.at[weights == 0].set(jnp.inf), teacher_head, weights
  )
  assert_close((value, (hidden_grad, head_grad)), grads(unfused, d.forward_kl, *args))
  assert (hidden_grad[weights == 0] == 0).all()


def test_nothing_counts():
  *args, weights = arrays()
  value, gradients = grads(fused_sum, d.forward_kl, *args, jnp.zeros_like(weights))
  assert value == 0 and all((g == 0).all() for g in gradients)


def test_softcap_scale_and_padded_vocabularies():
  hidden, head, teacher, teacher_head, weights = arrays()
  student, other = Head(scale=0.5, softcap=3.0, vocabulary=20), Head(softcap=2.0)

  def by_hand(divergence, hidden, head, teacher, teacher_head, weights):
    s = 3.0 * jnp.tanh(0.5 * (hidden @ head)[..., :20] / 3.0)
    t = 2.0 * jnp.tanh((teacher @ teacher_head)[..., :20] / 2.0)
    return jnp.sum(divergence(s, t, where=weights != 0) * weights)

  args = (hidden, head, teacher, teacher_head[:, :20], weights)
  want = grads(by_hand, d.forward_kl, *args)
  ours = partial(fused, chunk=8, student=student, teacher=other)
  assert_close(grads(ours, d.forward_kl, *args), want)


def test_extras_and_closed_over_arrays():
  hidden, head, teacher, teacher_head, weights = arrays()
  targets = jax.random.randint(jax.random.key(1), weights.shape, 0, 24)

  @jax.jit
  def step(hidden, mix):
    def mixed(s, t, targets, where=None):
      soft = d.forward_kl(s, t, where=where)
      return mix * soft - (1 - mix) * token_log_probs(s, targets, where=where)

    def total(hidden):
      return linear_divergence(
        mixed, hidden, head, teacher, teacher_head, targets, where=weights != 0, chunk=8
      ).sum()

    want = mixed(hidden @ head, teacher @ teacher_head, targets, weights != 0).sum()
    return jax.value_and_grad(total)(hidden), want

  (value, grad), want = step(hidden, 0.3)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  assert jnp.isfinite(grad).all()


def test_cross_entropy():
  hidden, head, *_ = arrays()
  targets = jnp.arange(24).reshape(4, 6).at[0, 0].set(-100)
  where = targets != -100

  def total(f):
    return jax.jit(jax.value_and_grad(lambda h, w: f(h, w).sum(), (0, 1)))(hidden, head)

  want = total(lambda h, w: -token_log_probs(h @ w, targets, where=where))
  assert_close(total(lambda h, w: linear_cross_entropy(h, w, targets, where=where, chunk=8)), want)


def test_bfloat16_products_with_float32_statistics():
  args = arrays(dtype=jnp.bfloat16)
  wide = [x.astype(jnp.float32) for x in args]
  value, gradients = grads(fused_sum, d.reverse_kl, *args, chunk=8)
  assert value.dtype == jnp.float32 and {g.dtype for g in gradients} == {jnp.bfloat16.dtype}
  assert_close((value, gradients), grads(unfused, d.reverse_kl, *wide), tolerance=5e-2)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_sharded_equals_unsharded(name):
  check_sharded(name, fused_sum, ("fsdp", "tensor"))


@pytest.mark.parametrize("form", [fused, fused_sum])
@pytest.mark.parametrize("head_spec", [(None, "tensor"), ("fsdp", None)])
def test_other_shardings_of_the_heads(form, head_spec):
  check_sharded("generalized_js", form, head_spec)


def test_flat_tokens_and_closed_over_arrays_sharded():
  *args, weights = arrays((16,), width=4, teacher_width=8)
  share = jnp.float32(0.3)

  def form(divergence, *args, **kw):
    def mixed(s, t, where=None):
      return share * divergence(s, t, where=where)

    return (unfused if "chunk" not in kw else fused_sum)(mixed, *args, **kw)

  want = grads(form, d.forward_kl, *args, weights)
  with jax.set_mesh(mesh()):
    assert_close(grads(form, d.forward_kl, *place(*args, weights), chunk=4), want)


def test_the_gradient_of_the_head_crosses_devices_once():
  args = arrays((8, 32), width=4, teacher_width=8, vocabulary=64)
  with jax.set_mesh(mesh()):
    total = partial(fused_sum, d.forward_kl, chunk=32)
    program = jax.jit(jax.grad(total, argnums=1)).lower(*place(*args)).compile().as_text()
  sums = re.findall(r"^.*f32\[4,\d+\].* all-reduce\(.*$", program, re.MULTILINE)
  assert len(sums) == 1 and "while" not in sums[0]


def mesh():
  return jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), (jax.sharding.AxisType.Auto,) * 3)


def place(*args, head_spec=("fsdp", "tensor")):
  batch, head = jax.P(("data", "fsdp")), jax.P(*head_spec)
  return [
    jax.device_put(x, jax.NamedSharding(mesh(), spec))
    for x, spec in zip(args, (batch, head, batch, head, batch), strict=True)
  ]


def check_sharded(name, form, head_spec):
  args = arrays((8, 6), width=4, teacher_width=8)
  want = grads(unfused, DIVERGENCES[name], *args)
  with jax.set_mesh(mesh()):
    placed = place(*args, head_spec=head_spec)
    assert_close(grads(form, DIVERGENCES[name], *placed, chunk=16), want)


@pytest.mark.parametrize("form", [fused, fused_sum])
def test_no_array_of_all_logits(form):
  lead, vocabulary = (4, 1024), 2048
  args = arrays(lead, width=8, teacher_width=8, vocabulary=vocabulary)

  def compiled(f, **kw):
    total = partial(f, d.generalized_js, **kw)
    return jax.jit(jax.value_and_grad(total, argnums=(0, 1))).lower(*args).compile()

  small, large = compiled(form, chunk=64), compiled(unfused)
  logits = 4 * lead[0] * lead[1] * vocabulary
  assert large.memory_analysis().temp_size_in_bytes > logits
  assert small.memory_analysis().temp_size_in_bytes < logits / 4
  sizes = [
    int(np.prod([int(n) for n in dims.split(",")]))
    for dims in re.findall(r"[a-z]\w*\[([\d,]+)\]", small.as_text())
  ]
  assert max(sizes) < lead[0] * lead[1] * vocabulary / 4


@pytest.mark.parametrize(
  "change",
  [
    {"head": jnp.zeros((6, 24))},
    {"teacher": jnp.zeros((4, 5, 3))},
    {"teacher_head": jnp.zeros((4, 24))},
    {"where": jnp.zeros((3, 6))},
  ],
)
def test_errors(change):
  args = dict(zip(("hidden", "head", "teacher", "teacher_head"), arrays(), strict=False)) | change
  where = args.pop("where", None)
  with pytest.raises(ValueError, match=r"\(\d"):
    linear_divergence(d.forward_kl, *args.values(), where=where)


@pytest.mark.parametrize("per_token", [True, False])
def test_heads_that_lie_as_embeddings_do(per_token):
  hidden, head, teacher, teacher_head, weights = arrays()
  expected = grads(fused if per_token else fused_sum, d.generalized_js, *arrays(), chunk=6)
  options = dict(chunk=6, student=Head(table=True), teacher=Head(table=True))

  def total(hidden, table):
    both = d.generalized_js, hidden, table, teacher, teacher_head.T
    if per_token:
      return jnp.sum(weights * linear_divergence(*both, where=weights != 0, **options))
    return linear_divergence_sum(*both, weights=weights, **options)[0]

  value, (of_hidden, of_table) = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(hidden, head.T)
  assert_close((value, (of_hidden, of_table.T)), expected)


def test_blocks_of_a_chunk_change_nothing(monkeypatch):
  whole = grads(fused_sum, d.generalized_js, *arrays(vocabulary=64), chunk=12)
  monkeypatch.setattr(chunks, "BLOCK", 256)  # four tokens
  assert_close(grads(fused_sum, d.generalized_js, *arrays(vocabulary=64), chunk=12), whole)


@pytest.mark.parametrize("sharded", [False, True])
def test_several_numbers_of_the_same_logits(monkeypatch, sharded):
  monkeypatch.setattr(chunks, "BLOCK", 64)  # more than one block in a chunk
  *args, weights = arrays((8, 6), width=4, teacher_width=8)
  both = d.forward_kl, d.reverse_kl
  options = dict(where=weights != 0, chunk=24)

  def stacked(student, teacher):
    return jnp.stack([f(student, teacher) for f in both], axis=-1)

  def total(*args):
    values = linear_divergence(stacked, *args, **options)
    return jnp.sum(values[..., 0] * weights + 2 * values[..., 1] * weights), values

  def apart(hidden, head, *teacher):
    values = [linear_divergence(f, hidden, head, *teacher, **options) for f in both]
    return jnp.sum(values[0] * weights + 2 * values[1] * weights), jnp.stack(values, axis=-1)

  want = jax.value_and_grad(apart, argnums=(0, 1), has_aux=True)(*args)
  with jax.set_mesh(mesh() if sharded else jax.make_mesh((1,), ("x",))):
    got = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(*args)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)
