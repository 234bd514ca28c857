"""The student's own text, graded: against numpy on the same draws, and in closed form."""

import jax
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax.data import text
from distill_jax.evals import own_text
from distill_jax.mesh import make_mesh
from distill_jax.models import transformer
from distill_jax.sampling import sample

END = 256  # of the byte tokenizer; the head's ids behind it are padding


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  root = tmp_path_factory.mktemp("own_text")
  for name in ("58.txt", "110.txt", "114.txt", "162.txt"):  # held out, by their names
    (root / name).write_text(f"{name} says things " * 5)
  source, cache = f"data.source={root}", f"cache_dir={root / 'cache'}"
  return config_lib.load("experiments/llm/gkd.py:smoke", (source, cache))


@pytest.fixture(scope="module")
def evaluate(config):
  with jax.set_mesh(make_mesh(config.mesh)):
    evaluate = own_text.make(config)
    yield lambda *trees: evaluate(*trees)


@pytest.fixture(scope="module")
def models(config):
  """Student and teacher of one architecture, with logits far from uniform."""
  shapes = jax.eval_shape(transformer.make(config.models.student).init, jax.random.key(0))
  rng = np.random.default_rng(0)
  trees = [jax.tree.map(lambda x: rng.normal(scale=0.5, size=x.shape), shapes) for _ in range(2)]
  return [jax.tree.map(lambda x: x.astype("f4"), tree) for tree in trees]


def test_the_figure_is_that_of_numpy_on_the_same_draws(config, evaluate, models):
  (batch,) = text.validation(config)
  model, prompt = transformer.make(config.models.student, END + 1), config.method.prompt

  @jax.jit
  def reference(student, teacher, prompts):
    new = config.data.seq_len + 1 - prompt
    tokens = sample(model, student, prompts, jax.random.key(0), new_tokens=new).tokens
    inputs = tokens[:, :-1]
    return tokens, *(model.logits(p, model.hidden(p, inputs)) for p in (student, teacher))

  tokens, *logits = reference(*models, batch["tokens"][:, :prompt])
  np.testing.assert_array_equal(tokens[:, :prompt], batch["tokens"][:, :prompt])
  # of what was sampled
  logits = [np.asarray(x, np.float64)[:, prompt - 1 :, : END + 1] for x in logits]
  log_q, log_p = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logits)
  expected = (np.exp(log_q) * (log_q - log_p)).sum(-1).mean()
  got = evaluate(dict(student=models[0]), dict(teacher=models[1]))
  assert got == dict(reverse_kl=pytest.approx(expected, rel=1e-4))
  assert got["reverse_kl"] > 0.1


def test_a_student_that_is_its_teacher_has_no_distance(evaluate, models):
  got = evaluate(dict(student=models[0]), dict(teacher=models[0]))
  assert got == dict(reverse_kl=pytest.approx(0, abs=1e-6))


def test_every_evaluation_draws_the_same_text(evaluate, models):
  first, again = (evaluate(dict(student=models[0]), dict(teacher=models[1])) for _ in range(2))
  assert first == again


def test_without_a_teacher_there_is_no_figure(evaluate, models):
  assert evaluate(dict(student=models[0]), {}) == {}
