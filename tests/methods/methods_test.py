"""What every method must do, found by walking the folder: a new method is tested by being there."""

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax import train
from distill_jax.mesh import make_mesh, put_batch

ROOT = pathlib.Path(__file__).parent.parent.parent
METHODS = sorted(
  ".".join(p.relative_to(ROOT / "distill_jax/methods").with_suffix("").parts)
  for p in (ROOT / "distill_jax/methods").rglob("*.py")
  if p.name != "__init__.py"
)
# nothing is learned
CHOSEN = ("dataset.selection", "dataset.whole", "dataset.pruning", "dataset.judge")
# eight simulated devices share two cores: of dataset distillation the small ones are quick
QUICK = ("dm", "kip", "frepo", "selection", "whole", "judge")
SLOW = [m for m in METHODS if m.startswith("dataset.") and m.removeprefix("dataset.") not in QUICK]
LEARNING = ("steps=30", "optim.lr=0.01", "optim.schedule=constant")


@functools.cache
def configs() -> dict[str, Any]:
  """Method -> the smoke config of the experiment of its name, or else of the first that uses it."""
  found: dict[str, Any] = {}
  for path in sorted((ROOT / "experiments").rglob("*.py")):
    if path.name != "common.py" and path.parent.name != "tables":
      config = config_lib.load(f"{path}:smoke", LEARNING)
      if config.method.name.endswith(f".{path.stem}"):
        found[config.method.name] = config
      found.setdefault(config.method.name, config)
  return found


class Run(NamedTuple):
  program: Any
  batches: list
  mesh: Any

  def start(self):
    """Done before the step is compiled: devices and the compiler share one pool of threads."""
    return jax.block_until_ready(self.program.init(self.program.keys[0], self.program.pretrained))

  def go(self, state, frozen, steps, first=0):
    """State after `steps` steps and the loss of each; one batch again and again."""
    losses = []
    for t in range(first, first + steps):
      key = jax.random.fold_in(self.program.keys[1], t)
      state, metrics = self.program.step(state, frozen, self.batches[t % len(self.batches)], key)
      losses.append(jax.device_get(metrics))
    return state, losses


@functools.cache
def run_of(name: str, devices: int) -> Run:
  config = configs()[name]
  size = 2 if devices == 8 else 1  # of each axis: data, fsdp, tensor
  config.mesh.data = config.mesh.fsdp = config.mesh.tensor = size
  mesh = make_mesh(config.mesh, jax.devices()[:devices])
  with jax.set_mesh(mesh):
    program = train.build(config, mesh)
    data = iter(method_lib.load("data", config.data.name).make(config))
    return Run(program, [put_batch(next(data), mesh)], mesh)


@pytest.fixture(
  params=[pytest.param(m, marks=[pytest.mark.slow] if m in SLOW else []) for m in METHODS],
  scope="module",
)
def prepared(request):
  """All tests of a method one after the other; then its programs are dropped, for a process that
  holds those of all methods runs out of memory maps."""
  if request.param not in configs():
    pytest.fail(f"no experiment uses {request.param}")
  yield request.param, run_of(request.param, 8)
  run_of.cache_clear()
  jax.clear_caches()


@pytest.fixture
def method(prepared):
  with jax.set_mesh(prepared[1].mesh):
    yield prepared


def shapes(tree):
  return jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)


def test_state_keeps_its_shape_and_frozen_its_bits(method):
  _, run = method
  state, frozen = run.start()
  before, bits = shapes(state), jax.device_get(frozen)
  state, _ = run.go(state, frozen, 2)
  assert shapes(state) == before
  assert int(state["step"]) == 2
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(frozen), bits)


def test_metrics_are_finite_pairs(method):
  _, run = method
  _, metrics = run.go(*run.start(), 2)
  for step in metrics:
    for name, (total, count) in step.items():
      assert np.isfinite(total) and count > 0, name


def test_the_loss_falls_and_one_program_is_compiled(method):
  """Losses of diffusion methods chase targets that move with the student, or have only a gradient,
  and those of dataset distillation change with the network of a step: there something is learned,
  and tests/methods says what."""
  name, run = method
  state, frozen = run.start()
  before = jax.device_get(state["student"])
  state, metrics = run.go(state, frozen, 30)
  if name.startswith(("diffusion.", "dataset.")):
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, jax.device_get(state["student"]))
    most = max(jax.tree.leaves(moved))
    assert most == 0 if name in CHOSEN else 1e-4 < most < 10
  else:
    losses = [m["loss"][0] / m["loss"][1] for m in metrics]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5]), losses
  assert run.program.step._cache_size() == 1


def test_two_runs_and_a_resumed_one_end_in_the_same_bits(method):
  _, run = method
  state, frozen = run.start()
  straight = jax.device_get(run.go(state, frozen, 4)[0])
  state, frozen = run.start()
  half = jax.device_get(run.go(state, frozen, 2)[0])
  restored = jax.device_put(half, jax.tree.map(lambda x: x.sharding, run.program.abstract[0]))
  resumed = jax.device_get(run.go(restored, frozen, 2, first=2)[0])
  jax.tree.map(np.testing.assert_array_equal, straight, resumed)


def test_one_device_equals_eight(method):
  name, eight = method
  states = [jax.device_get(eight.go(*eight.start(), 3)[0])]
  one = run_of(name, 1)
  with jax.set_mesh(one.mesh):
    states.append(jax.device_get(one.go(*one.start(), 3)[0]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), *states)


def test_nothing_large_is_closed_over(method):
  """A teacher that is not an argument would be a constant of the program."""
  _, run = method
  text = run.program.step.lower(*run.program.abstract).as_text()
  assert len(text) < 2_000_000
  assert max((len(line) for line in text.splitlines() if "dense<" in line), default=0) < 20_000
