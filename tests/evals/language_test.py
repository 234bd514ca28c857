"""Language evals against numpy, and in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from distill_jax import config as config_lib
from distill_jax.data import text
from distill_jax.evals import language
from distill_jax.mesh import make_mesh
from distill_jax.models import transformer

END = 256  # of the byte tokenizer; the head's ids behind it are padding


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  """Two tiny models on bytes; the held-out documents are short, so their ends count."""
  root = tmp_path_factory.mktemp("language")
  for name in ("58.txt", "110.txt", "114.txt", "162.txt"):  # held out, by their names
    (root / name).write_text(f"{name} says naïve things " * 5)
  source, cache = f"data.source={root}", f"cache_dir={root / 'cache'}"
  config = config_lib.load("experiments/llm/kd.py:smoke", (source, cache, "eval_batches=2"))
  config.models.student.logit_softcap = 1.5
  config.models.teacher.layers = 1
  return config


def random_params(config, name, seed):
  """As a model's, with logits far from uniform."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(transformer.make(config.models[name]).init, jax.random.key(0))
  return jax.tree.map(lambda x: rng.normal(scale=0.5, size=x.shape).astype("f4"), shapes)


@pytest.fixture(scope="module")
def evaluate(config):
  with jax.set_mesh(make_mesh(config.mesh)):
    evaluate = language.make(config)
    yield lambda *trees: evaluate(*trees)


@pytest.fixture(scope="module")
def models(config):
  return random_params(config, "student", 0), random_params(config, "teacher", 1)


def log_probs(config, name, params, tokens):
  """By the model's own hidden states, the rest in float64."""
  model = transformer.make(config.models[name])
  hidden = np.asarray(jax.jit(model.hidden)(params, tokens), np.float64)
  logits = hidden @ np.asarray(model.head(params), np.float64).T[:, : END + 1]
  if cap := config.models[name].logit_softcap:
    logits = cap * np.tanh(logits / cap)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def expected(config, models):
  """The figures and the counts of targets and bytes."""
  tokens = np.concatenate([b["tokens"] for b in text.validation(config)])
  inputs, targets = tokens[:, :-1], tokens[:, 1:]
  student = log_probs(config, "student", models[0], inputs)
  teacher = log_probs(config, "teacher", models[1], inputs)
  nats = -np.take_along_axis(student, targets[..., None], -1)
  size = (targets != END).sum()
  assert 0 < size < targets.size  # an end is predicted, but is no byte
  return dict(
    bits_per_byte=nats.sum() / np.log(2) / size,
    loss=nats.mean(),
    teacher_kl=(np.exp(teacher) * (teacher - student)).sum(-1).mean(),
    reverse_kl=(np.exp(student) * (student - teacher)).sum(-1).mean(),
    top1=(teacher.argmax(-1) == student.argmax(-1)).mean(),
    targets=targets.size,
    bytes=size,
  )


def test_figures_are_those_of_numpy(evaluate, models, expected):
  got = evaluate(dict(student=models[0]), dict(teacher=models[1]))
  assert set(got) == {"bits_per_byte", "loss", "teacher_kl", "reverse_kl", "top1"}
  for name, value in got.items():
    assert value == pytest.approx(expected[name], rel=1e-5), name
  assert 0 < got["top1"] < 1 and abs(got["teacher_kl"] / got["reverse_kl"] - 1) > 0.01


def test_a_uniform_student_in_closed_form(evaluate, models, expected, config):
  zero = jax.tree.map(np.zeros_like, models[0])
  got = evaluate(dict(student=zero), dict(teacher=models[1]))
  nats = np.log(END + 1)
  assert got["loss"] == pytest.approx(nats, rel=1e-6)
  bits = nats / np.log(2) * expected["targets"] / expected["bytes"]
  assert got["bits_per_byte"] == pytest.approx(bits, rel=1e-6)


def test_without_a_teacher_its_figures_are_absent(evaluate, models, expected):
  got = evaluate(dict(student=models[0]), {})
  assert set(got) == {"bits_per_byte", "loss"}
  assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_a_student_that_is_its_teacher_and_one_device_for_eight(config, models, expected):
  twins = config.copy_and_resolve_references()
  twins.models.teacher = twins.models.student
  mesh = ConfigDict(dict(data=1, fsdp=1, tensor=1, slices=1))
  with jax.set_mesh(make_mesh(mesh, jax.devices()[:1])):
    got = language.make(twins)(dict(student=models[0]), dict(teacher=models[0]))
  same = dict(teacher_kl=0, reverse_kl=0, top1=1)
  for name, value in got.items():
    assert value == pytest.approx(same.get(name, expected[name]), rel=1e-5, abs=1e-6), name


def test_padding_of_the_vocabulary_stands_for_no_bytes(config):
  sizes = language._padded(np.array([1] * 256 + [0]), config)
  assert len(sizes) == config.models.student.vocab_size == 264
  assert sizes.sum() == 256 and jnp.all(sizes[END:] == 0)
