"""Agreement and calibration against numpy, token by token."""

import jax
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax.data import text
from distill_jax.evals import agreement
from distill_jax.mesh import make_mesh
from distill_jax.models import student as student_lib


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  root = tmp_path_factory.mktemp("agreement")
  for name in ("58.txt", "110.txt", "114.txt", "162.txt"):  # held out, by their names
    (root / name).write_text(f"{name} says the same thing " * 6)
  source, cache = f"data.source={root}", f"cache_dir={root / 'cache'}"
  keys = (source, cache, "eval_batches=2", "data.seq_len=20", "divergence.chunk=50")
  return config_lib.load("experiments/llm/kd.py:smoke", keys)


@pytest.fixture(scope="module")
def params(config):
  """Two models that agree in part, the student sure of itself."""
  found = []
  for name, scale in (("student", 1.0), ("teacher", 0.0)):
    shapes = jax.eval_shape(student_lib.model(config, name).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    noise = np.random.default_rng(1)
    found.append(
      jax.tree.map(
        lambda x: (rng.normal(size=x.shape) + 0.3 * scale * noise.normal(size=x.shape)).astype(
          "f4"
        ),
        shapes,
      )
    )
  return dict(student=found[0], teacher=found[1])


@pytest.fixture(scope="module")
def evaluate(config):
  with jax.set_mesh(make_mesh(config.mesh)):
    evaluate = agreement.make(config)
    yield lambda *trees: evaluate(*trees)


@pytest.fixture(scope="module")
def figures(config, params):
  """Probabilities of both models in float64 [N, T, 257], and the targets."""
  tokens = np.concatenate([batch["tokens"] for batch in text.validation(config)])
  probs = {}
  for name, tree in params.items():
    model = student_lib.model(config, name)
    hidden = jax.jit(model.hidden)(tree, tokens[:, :-1])
    logits = np.asarray(model.logits(tree, hidden), np.float64)[..., :257]
    p = np.exp(logits - logits.max(-1, keepdims=True))
    probs[name] = p / p.sum(-1, keepdims=True)
  return probs["student"], probs["teacher"], tokens[:, 1:]


@pytest.fixture(scope="module")
def results(evaluate, params):
  return evaluate(dict(student=params["student"]), dict(teacher=params["teacher"]))


def test_perplexity_and_calibration_are_those_of_a_loop(results, figures):
  student, _, targets = figures
  picked = np.take_along_axis(student, targets[..., None], -1)
  assert results["perplexity"] == pytest.approx(np.exp(-np.log(picked).mean()), rel=1e-4)
  bins = [[] for _ in range(15)]
  for p, target in zip(student.reshape(-1, 257), targets.ravel(), strict=True):
    place = next(i for i in range(15) if p.max() <= (i + 1) / 15 + 1e-12)
    bins[place].append((p.max(), p.argmax() == target))
  ece = sum(abs(sum(c for c, _ in b) - sum(right for _, right in b)) for b in bins) / targets.size
  assert results["ece"] == pytest.approx(ece, rel=1e-4)
  shares = [results[f"confidence{i:02}"] for i in range(1, 16)]
  np.testing.assert_allclose(shares, [len(b) / targets.size for b in bins], atol=1e-6)
  assert 0.01 < ece < 1 and sum(share > 0 for share in shares) > 5


def test_agreement_by_position_is_that_of_a_loop(results, figures):
  student, teacher, _ = figures
  tops = [np.argsort(-x, axis=-1)[..., :10] for x in (student, teacher)]
  flat = zip(*(x.reshape(-1, 10) for x in tops), strict=True)
  assert results["overlap"] == pytest.approx(np.mean([len({*a} & {*b}) / 10 for a, b in flat]))
  same = student.argmax(-1) == teacher.argmax(-1)
  kl = (teacher * np.log(teacher / student)).sum(-1)
  parts = [[t for t in range(20) if t * 8 // 20 == i] for i in range(8)]
  assert sorted(map(len, parts)) == [2] * 4 + [3] * 4
  for i, part in enumerate(parts, 1):
    assert results[f"top1_part{i}"] == pytest.approx(same[:, part].mean(), abs=1e-6)
    assert results[f"teacher_kl_part{i}"] == pytest.approx(kl[:, part].mean(), rel=1e-3)
  assert 0.05 < results["overlap"] < 0.95 and 0 < same.mean() < 1
  assert len(results) == 2 + 15 + 1 + 16


def test_without_a_teacher_its_figures_are_absent(evaluate, params, results):
  found = evaluate(dict(student=params["student"]), {})
  assert set(found) == {name for name in results if name[:4] not in ("over", "top1", "teac")}
  assert found["ece"] == pytest.approx(results["ece"], rel=1e-5)


def test_a_uniform_student_is_calibrated_as_far_as_chance_goes(evaluate, params, figures):
  zero = jax.tree.map(np.zeros_like, params["student"])
  found = evaluate(dict(student=zero), {})
  assert found["perplexity"] == pytest.approx(257, rel=1e-5)
  right = (figures[2] == 0).mean()  # the first of all equals
  assert found["ece"] == pytest.approx(abs(right - 1 / 257), rel=1e-4)
  assert found["confidence01"] == 1


def test_a_student_that_is_its_teacher_agrees_everywhere(evaluate, params):
  teacher = params["teacher"]
  found = evaluate(dict(student=teacher), dict(teacher=teacher))
  assert found["overlap"] == pytest.approx(1)
  for i in range(1, 9):
    assert found[f"top1_part{i}"] == 1 and abs(found[f"teacher_kl_part{i}"]) < 1e-6
