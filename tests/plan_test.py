"""Plans: the command line, the arithmetic, and toy steps compiled by the real TPU compiler."""

import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from distill_jax import plan
from distill_jax.config import ConfigError

needs_compiler = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="the TPU compiler (libtpu) is not installed"
)
KD = "experiments/llm/kd.py:smoke"
LAYERS, BATCH, WIDTH, HIDDEN = 3, 256, 512, 1024
FLOPS = 6 * LAYERS * 2 * BATCH * WIDTH * HIDDEN


def toy(topology, batch=BATCH):
  """A scanned MLP with FSDP and tensor parallelism on a slice: step, arguments, devices."""
  devices = plan.slice_devices(topology)
  grid = np.array(devices).reshape(-1, 2)
  mesh = jax.sharding.Mesh(grid, ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)

  def array(shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, jax.P(*spec)))

  def loss(params, x):
    def layer(h, w):
      h = h + jax.nn.relu(h @ w["up"]) @ w["down"]
      return jax.lax.with_sharding_constraint(h, NamedSharding(mesh, jax.P("fsdp"))), None

    return jnp.sum(jax.lax.scan(layer, x, params)[0].astype(jnp.float32) ** 2)

  def step(params, x):
    gradients = jax.grad(loss, argnums=(0, 1))(params, x)
    return jax.tree.map(lambda p, g: (p - 0.1 * g).astype(p.dtype), (params, x), gradients)

  up = array((LAYERS, WIDTH, HIDDEN), None, "fsdp", "tensor")
  down = array((LAYERS, HIDDEN, WIDTH), None, "tensor", "fsdp")
  arguments = {"state": {"up": up, "down": down}, "batch": array((batch, WIDTH), "fsdp")}
  return jax.jit(step, donate_argnums=(0, 1)), arguments, len(devices)


def bytes_of(tree):
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  ("topology", "message"),
  [
    ("v5:16x16", "Unknown TPU 'v5' in topology 'v5:16x16'. Did you mean 'v5"),
    ("v5e", "v5e slices are written v5e:AxB."),
    ("v5p:4x4", "v5p slices are written v5p:AxBxC."),
    ("v5e:0x4", "v5e slices are written"),
    ("v5e:32x16", "a v5e pod has 256 chips"),
  ],
)
def test_a_wrong_topology_is_one_line_and_exit_code_2(topology, message, capsys):
  with pytest.raises(ConfigError, match="opology") as error:
    plan.parse_topology(topology)
  assert message in str(error.value)
  assert plan.main(["--config", KD, "--topology", topology]) == 2
  written = capsys.readouterr().err
  assert message in written and written.count("\n") == 1


def test_a_missing_compiler_is_one_line_with_the_remedy(monkeypatch, capsys):
  find = importlib.util.find_spec
  missing = lambda name, *rest: None if name == "libtpu" else find(name, *rest)  # noqa: E731
  monkeypatch.setattr(importlib.util, "find_spec", missing)
  assert plan.main(["--config", KD, "--topology", "v5e:2x2"]) == 2
  assert "pip install 'distill_jax[tpu]'" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--config", "experiments/llm/kdd.py", "--topology", "v5e:2x2"], "kd.py"),
    (["--config", KD, "--topology", "v5e:2x2", "--config.stepz=3"], "steps"),
    (["--config", KD, "--topology", "v5e:2x2", "--steps=3"], "--config.KEY=VALUE"),
  ],
)
def test_a_wrong_command_is_exit_code_2(words, message, capsys):
  assert plan.main(words) == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize(
  ("work", "bound", "seconds"),
  [
    ((197e12, 0, 0), "flops", 1.0),
    ((1e12, 819e9 * 2, 1e9), "hbm", 2.0),
    ((1e12, 1e9, 600e9), "links", 3.0),  # with half of the 400 GB/s of both directions
  ],
)
def test_the_roofline_is_the_longest_of_three(work, bound, seconds):
  work = dict(zip(("flops", "hbm_bytes", "sent_bytes"), work, strict=True))
  estimate = plan.roofline(work, plan.CHIPS["v5e"])
  assert estimate["bound"] == bound
  assert estimate["step_seconds"] == max(estimate["seconds"].values()) == seconds
  half = plan.roofline(work, plan.CHIPS["v5e"], 0.5)
  assert half["step_seconds"] == 2 * seconds


@needs_compiler
@pytest.mark.parametrize("topology", ["v5e:2x2", "tpu7x:2x2x1"])
def test_a_toy_step_costs_what_the_formula_says(topology):
  step, arguments, devices = toy(topology)
  report = plan.plan(step, arguments, topology, devices)
  assert report["fits"] and report["chips"] == 4
  assert report["devices"] == (8 if topology.startswith("tpu7x") else 4)  # two in a chip
  memory, work = report["memory"], report["work"]
  assert memory["hbm"] == plan.CHIPS[topology.split(":")[0]].hbm * 4 / devices
  local = bytes_of(arguments["state"]) / devices
  assert memory["of_arguments"] == {"state": local, "batch": 2 * BATCH * WIDTH * 2 / devices}
  assert memory["arguments"] >= sum(memory["of_arguments"].values())  # tiles are padded
  assert memory["aliased"] >= local
  assert work["flops"] == FLOPS / devices
  assert not work["loops_counted_once"] and not work["custom_calls_not_counted"]
  if topology == "v5e:2x2":  # each layer's half is gathered forward and backward
    gathered = next(c for c in work["collectives"] if c["kind"] == "all-gather")
    assert (gathered["group"], gathered["executions"]) == (2, 2 * 2 * LAYERS)
    assert gathered["bytes"] == 2 * bytes_of(arguments["state"]) / 2
    assert gathered["sent"] == gathered["bytes"] / 2
  assert report["estimate"]["bound"] in report["estimate"]["seconds"]
  assert json.loads(json.dumps(report)) == report


@needs_compiler
def test_a_step_that_does_not_fit_is_refused():
  step, arguments, devices = toy("v5e:2x2", batch=2**26)
  report = plan.plan(step, arguments, "v5e:2x2", devices)
  assert not report["fits"]
  assert "HBM" in report["refused"] and "work" not in report
  assert report["memory"]["of_arguments"]["batch"] == 2**26 * WIDTH * 2 / 2


@needs_compiler
def test_the_command_plans_an_experiment(tmp_path, monkeypatch, capsys):
  words = ["--config", KD, "--topology", "v5e:2x2", "--json", str(tmp_path / "plan.json")]
  assert plan.main(words) == 0
  shown = capsys.readouterr().out
  assert "Memory" in shown and "an estimate" in shown and "bound" in shown
  report = json.loads((tmp_path / "plan.json").read_text())
  assert report["fits"] and report["config"] == KD and report["chips"] == 4
  assert report["work"]["flops"] > 0 and report["versions"]["libtpu"]
  monkeypatch.setattr(plan, "_plan_experiment", lambda *_: report | {"fits": False})
  assert plan.main(words) == 1
