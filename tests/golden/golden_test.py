"""Our functions against numbers that the authors' own code printed, in value and gradient.

Each file FAMILY/METHOD.npz holds cases with keys CASE/NAME: `in_ARG` inputs, `out` and `out_X`
results, `grad_ARG` the gradient of out.sum(), and `meta`, JSON that names the method, its
hyperparameters, the formula and the source. `cases.py` says how to call ours.
"""

import functools
import json
import re
import types

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreter import evaluate

CANCELLING = ("near", "equal", "late")  # cases built from differences of almost equal numbers


@functools.cache
def load(path):
  """The cases of a file: name -> (meta, arrays)."""
  with np.load(path) as file:
    arrays = {name: {} for name in sorted({key.split("/")[0] for key in file.files})}
    for key in file.files:
      case, name = key.split("/", 1)
      arrays[case][name] = file[key]
  return {case: (json.loads(str(a.pop("meta"))), a) for case, a in arrays.items()}


def pytest_generate_tests(metafunc):
  folder = metafunc.config.getoption("golden_dir")
  found = [
    pytest.param(path, case, id=f"{path.stem}/{case}")
    for path in sorted(folder.rglob("*.npz"))
    for case in load(path)
  ]
  metafunc.parametrize(("path", "case"), found)


def test_golden(path, case):
  meta, arrays = load(path)[case]
  method = meta["method"]
  for reasons in (cases.NOT_YET, cases.DEVIATES):
    if method in reasons:
      pytest.skip(reasons[method])
  assert method in cases.CASES, f"{path}: tests/golden/cases.py maps no function to {method!r}"
  with jax.enable_x64(True):
    got = call(cases.CASES[method], meta["hyper"], arrays, meta["source"])
  inputs = [a for name, a in arrays.items() if name.startswith("in_") and a.dtype.kind == "f"]
  want = {name: a for name, a in arrays.items() if name.startswith(("out", "grad_"))}
  assert want.keys() <= got.keys(), f"no {sorted(want.keys() - got.keys())}"
  for name, value in want.items():
    compare(name, np.asarray(got[name]), value, inputs, case, meta.get("precision"))


def call(function, hyper, arrays, source):
  """`out*` and `grad_*` of a case: function(inputs, hyper) -> out or a dict of out, out_X. The
  inputs have `source` too, where one method has several functions."""
  inputs = {name[3:]: a for name, a in arrays.items() if name.startswith("in_")}
  grads = [name[5:] for name in arrays if name.startswith("grad_")]
  student = {name: inputs.pop(name) for name in grads}
  fixed = {name: jnp.asarray(a) if a.dtype.kind == "f" else a for name, a in inputs.items()}

  def total(student):
    out = function(types.SimpleNamespace(**fixed, **student, source=source), hyper)
    out = out if isinstance(out, dict) else {"out": out}
    return jnp.sum(out["out"]), out

  def both(student):
    if not student:
      return {}, total(student)[1]
    return jax.grad(total, has_aux=True)(student)

  gradients, out = evaluate(both, student)
  return out | {f"grad_{name}": g for name, g in gradients.items()}


def compare(name, got, want, inputs, case, precision):
  rtol, floor = 1e-6, 1e-9
  if case.startswith(CANCELLING):
    rtol, floor = 1e-5, 1e-8
  if precision and precision.startswith("float32"):
    rtol, floor = 1e-4, 1e-6
  if precision and (stated := re.search(r"rtol\W*([\d.]+(?:e-?\d+)?)", precision)):
    rtol = max(rtol, float(stated[1]))
  scale = max([1.0] + [np.abs(a[np.isfinite(a)]).max(initial=0) for a in inputs])
  assert got.shape == want.shape, f"{name}: shape {got.shape}, the authors' {want.shape}"
  np.testing.assert_allclose(got, want, rtol=rtol, atol=floor * scale, err_msg=name)
