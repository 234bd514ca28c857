"""Each loss in numpy's float64 from the student's logits and what is cached; and a cache that holds
all against the live teacher."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax.config import ConfigError
from distill_jax.methods.llm import cached_kd
from distill_jax.models import pretrained
from distill_jax.models import student as student_lib

B, T, K, V = 8, 16, 8, 257
PLAIN = ("optim.schedule=constant", "optim.name=sgd", "optim.lr=1.0", "optim.clip_norm=0.0")


def experiment(loss, *overrides):
  spec = f"experiments/llm/cached_kd.py:smoke,loss={loss}"
  return config_lib.load(spec, (*PLAIN, *overrides))


@functools.cache
def models():
  """Parameters of a student and a teacher that disagree, tokens, and the logits of both."""
  config = experiment("tail")
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 256, (B, T + 1)).astype(np.int32)
  params, logits, hidden = {}, {}, {}
  for name in ("student", "teacher"):
    model = student_lib.model(config, name)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params[name] = jax.tree.map(lambda x: rng.normal(scale=0.7, size=x.shape).astype("f4"), shapes)
    hidden[name] = np.asarray(jax.jit(model.hidden)(params[name], tokens[:, :-1]))
    logits[name] = np.asarray(model.logits(params[name], hidden[name]), np.float64)[..., :V]
  return params, tokens, logits, hidden


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def cached(kind="top_k"):
  """A batch with the teacher's top K, or K ids and weights."""
  _, tokens, logits, hidden = models()
  rng = np.random.default_rng(1)
  log_p = log_softmax(logits["teacher"])
  ids = np.argsort(-log_p, -1)[..., :K].astype(np.int32)
  batch = dict(tokens=tokens, mask=rng.random((B, T)) < 0.7, teacher_ids=ids)
  batch["mask"][0] = False  # a row without targets
  if kind == "top_k":
    batch["teacher_log_probs"] = np.take_along_axis(log_p, ids, -1).astype("f4")
  else:
    counts = rng.multinomial(50, np.ones(K) / K, (B, T))
    batch["teacher_weights"] = (counts / 50).astype("f4")
  batch["teacher_hidden"] = hidden["teacher"].astype("f2")
  return batch


def run(config, batch):
  """State and metrics of one step from the fixed student."""
  params, *_ = models()
  method = method_lib.load("methods", config.method.name).make(config)
  state, frozen = method.init(jax.random.key(0), dict(student=params["student"]))
  if frozen:
    frozen = dict(teacher=params["teacher"])
  return jax.jit(method.step)(state, frozen, batch, jax.random.key(3))


def kl(p, q):
  return (p * (np.log(p) - np.log(q))).sum(-1)


def grouped(probs, ids):
  inside = np.take_along_axis(probs, ids, -1)
  return np.concatenate([inside, 1 - inside.sum(-1, keepdims=True)], -1)


def expected(loss, batch, temperature, count=K):
  """The loss of each token, by the words of the method's docstring."""
  logits = models()[2]
  q1 = np.exp(log_softmax(logits["student"]))
  q = np.exp(log_softmax(logits["student"] / temperature))
  ids = batch["teacher_ids"][..., :count]
  if loss == "sampled":
    picked = np.take_along_axis(np.log(q1), ids, -1)
    return -(batch["teacher_weights"] * picked).sum(-1)
  if loss == "hidden":
    p = np.exp(log_softmax(logits["teacher"] / temperature))
    return temperature**2 * kl(p, q)
  p1 = np.exp(batch["teacher_log_probs"].astype(np.float64)[..., :count])
  inner = np.exp(log_softmax(np.log(p1) / temperature))
  if loss == "tail":
    whole = np.concatenate([p1, 1 - p1.sum(-1, keepdims=True)], -1)
    tempered = np.exp(log_softmax(np.log(whole) / temperature))
    return temperature**2 * kl(tempered, grouped(q, ids))
  if loss == "renormalised":
    return temperature**2 * kl(inner, np.take_along_axis(q, ids, -1))
  inner_q = np.take_along_axis(q, ids, -1)
  inner_q = inner_q / inner_q.sum(-1, keepdims=True)
  if loss == "first":
    return temperature**2 * kl(inner, inner_q)
  mass_p, mass_q = p1.sum(-1), np.take_along_axis(q1, ids, -1).sum(-1)
  two = np.stack([mass_p, 1 - mass_p], -1), np.stack([mass_q, 1 - mass_q], -1)
  return kl(*two) + mass_p * kl(inner, inner_q)


CASES = [
  *((loss, t) for loss in ("tail", "renormalised", "first", "decoupled") for t in (1.0, 2.0)),
  ("hidden", 2.0),
  ("sampled", 1.0),
]


def signals(loss, batch):
  """What `soft_loss` is handed beside the student's logits."""
  if loss == "hidden":
    return (models()[2]["teacher"],)
  return batch["teacher_ids"], batch[
    "teacher_weights" if loss == "sampled" else "teacher_log_probs"
  ]


@pytest.mark.parametrize("loss, temperature", CASES)
def test_each_token_is_that_of_numpy(loss, temperature):
  batch = cached("sampled" if loss == "sampled" else "top_k")
  config = experiment(loss, f"divergence.kind.temperature={temperature}")
  found = cached_kd.soft_loss(config)(models()[2]["student"], *signals(loss, batch))
  count = 5 if loss == "first" else K  # what the experiment asks for
  np.testing.assert_allclose(found, expected(loss, batch, temperature, count), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["tail", "hidden"])
def test_a_step_weighs_data_and_teacher_on_the_targets_that_count(loss):
  batch = cached()
  config = experiment(loss, "method.alpha=0.6", "divergence.chunk=24")
  _, metrics = run(config, batch)
  targets = batch["tokens"][:, 1:, None]
  hard = -np.take_along_axis(log_softmax(models()[2]["student"]), targets, -1)[..., 0]
  values = np.where(batch["mask"], 0.6 * expected(loss, batch, 1.0) + 0.4 * hard, 0)
  tolerance = 2e-3 if loss == "hidden" else 1e-5  # float16 hidden states
  np.testing.assert_allclose(metrics["loss"][0], values.sum(), rtol=tolerance)
  assert metrics["loss"][1] == batch["mask"].sum() and metrics["skipped"][0] == 0


def test_losses_differ():
  batch = cached()
  losses = ("tail", "renormalised", "first", "decoupled")
  means = [expected(loss, batch, 2.0).mean() for loss in losses]
  assert min(abs(a - b) for i, a in enumerate(means) for b in means[:i]) > 0.01


def test_drawn_ids_arrive_in_the_step():
  config, batch = experiment("sampled"), cached("sampled")
  method = method_lib.load("methods", config.method.name).make(config)
  state, frozen = jax.eval_shape(method.init, jax.random.key(0), {})
  assert frozen == {}
  jax.eval_shape(method.step, state, frozen, batch, jax.random.key(0))


def value(loss, batch, *overrides):
  found = cached_kd.soft_loss(experiment(loss, *overrides))
  return found(models()[2]["student"], *signals(loss, batch))


def test_at_temperature_one_decoupled_is_tail():
  np.testing.assert_allclose(value("decoupled", cached()), value("tail", cached()), rtol=1e-4)


def test_ids_use_the_likeliest_alone():
  few = cached()
  few |= {name: few[name][..., :3] for name in ("teacher_ids", "teacher_log_probs")}
  np.testing.assert_array_equal(value("tail", cached(), "method.ids=3"), value("tail", few))


def test_draws_give_the_gradient_of_forward_kl_on_average():
  """With every id drawn as often as the teacher says, cross-entropy is KL and the entropy of p."""
  log_p = log_softmax(models()[2]["teacher"])
  ids = np.broadcast_to(np.arange(V), log_p.shape)
  batch = dict(teacher_ids=ids, teacher_weights=np.exp(log_p))
  full = value("hidden", batch)
  entropy = -(np.exp(log_p) * log_p).sum(-1)
  np.testing.assert_allclose(value("sampled", batch), full + entropy, rtol=1e-4)


@pytest.mark.parametrize(
  "loss, divergence",
  [("tail", "reverse_kl"), ("renormalised", "total_variation"), ("first", "generalized_js")],
)
def test_any_divergence_is_finite_with_its_gradient(loss, divergence):
  batch = cached()
  soft = cached_kd.soft_loss(experiment(loss, f"divergence.kind.name={divergence}"))

  def total(logits):
    return jnp.sum(soft(logits, *signals(loss, batch)))

  found, gradient = jax.jit(jax.value_and_grad(total))(models()[2]["student"].astype("f4"))
  assert np.isfinite(found) and np.isfinite(gradient).all() and np.abs(gradient).max() > 0


@pytest.mark.parametrize(
  "loss, overrides, words",
  [
    ("all", (), "method.loss 'all' is not one of tail, renormalised, first"),
    ("tail", ("data.cache.kind=sampled",), "method.loss 'tail' needs data.cache.kind=top_k"),
    ("sampled", ("data.cache.kind=top_k",), "'sampled' needs data.cache.kind=sampled"),
    ("sampled", ("divergence.kind.temperature=2.0",), "for divergence.kind.temperature 1"),
    ("hidden", ("data.cache.hidden=",), "needs data.cache.hidden: float16 or bfloat16"),
    ("renormalised", ("divergence.kind.name=reverse_kl",), "is infinite"),
  ],
)
def test_what_does_not_fit_is_named(loss, overrides, words):
  config = experiment(loss, *overrides)
  with pytest.raises(ConfigError) as error:
    method_lib.load("methods", config.method.name).make(config)
  assert words in str(error.value) and "\n" not in str(error.value)


def update(config, student):
  """What three steps of SGD do to a student, and the loss of each."""
  method = method_lib.load("methods", config.method.name).make(config)
  teacher = pretrained.load(config.pretrained.teacher)
  state, frozen = method.init(jax.random.key(0), dict(student=student, teacher=teacher))
  step, losses = jax.jit(method.step), []
  data = iter(method_lib.load("data", config.data.name).make(config))
  for _ in range(3):
    state, metrics = step(state, frozen, next(data), jax.random.key(0))
    losses.append(metrics["loss"][0] / metrics["loss"][1])
  moved = jax.tree.map(lambda a, b: a - b, jax.device_get(state["student"]), student)
  return np.concatenate([x.ravel() for x in jax.tree.leaves(moved)]), np.array(losses)


def test_training_from_a_cache_is_training_from_the_live_teacher(tmp_path):
  """All ids in 24 bits: to float32 rounding. 64 of 257 ids in 12 bits: the update is within 1%, of
  a teacher that is as sure as those of text are."""
  params = dict(models()[0])
  params["teacher"] = dict(params["teacher"], final_norm=3 * params["teacher"]["final_norm"])
  config = experiment("tail")
  pretrained.save(tmp_path / "teacher", params["teacher"], config.models.teacher, "float32")
  (tmp_path / "texts").mkdir()
  (tmp_path / "texts/0.txt").write_text("what the teacher says of it, " * 20)
  keys = {"pretrained.teacher": tmp_path / "teacher", "data.source": tmp_path / "texts"}
  keys |= {"cache_dir": tmp_path / "cache", "data.cache.rows": 0, "optim.lr": 0.01}
  keys = [f"{key}={value}" for key, value in keys.items()]
  kd = config_lib.load("experiments/llm/kd.py:smoke", (*PLAIN, *keys))
  live, losses = update(kd, params["student"])
  whole, same = update(
    experiment("tail", *keys, "data.cache.k=257", "data.cache.bits=24"), params["student"]
  )
  part, near = update(experiment("tail", *keys, "data.cache.k=64"), params["student"])
  np.testing.assert_allclose(same, losses, rtol=1e-5)
  size = np.linalg.norm(live)
  far, little = np.linalg.norm(whole - live) / size, np.linalg.norm(part - live) / size
  assert far < 1e-4, far
  assert 1e-4 < little < 0.01, little  # and not the same by mistake
  np.testing.assert_allclose(near, losses, rtol=0.01)
