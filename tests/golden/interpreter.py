"""Runs a traced JAX function in NumPy.

A thousand small float64 programs take XLA many minutes to compile and NumPy a minute to run.
Primitives that are not in the table are run by JAX.
"""

import jax
import numpy as np
from jax.extend import core

ELEMENTWISE = {
  "abs": np.abs,
  "add": np.add,
  "add_any": np.add,
  "and": np.logical_and,
  "ceil": np.ceil,
  "copy": np.array,
  "cos": np.cos,
  "div": np.true_divide,
  "eq": np.equal,
  "exp": np.exp,
  "expm1": np.expm1,
  "floor": np.floor,
  "ge": np.greater_equal,
  "gt": np.greater,
  "is_finite": np.isfinite,
  "le": np.less_equal,
  "log": np.log,
  "log1p": np.log1p,
  "lt": np.less,
  "max": np.maximum,
  "min": np.minimum,
  "mul": np.multiply,
  "ne": np.not_equal,
  "neg": np.negative,
  "not": np.logical_not,
  "or": np.logical_or,
  "pow": np.power,
  "rsqrt": lambda x: 1 / np.sqrt(x),
  "sign": np.sign,
  "sin": np.sin,
  "sqrt": np.sqrt,
  "square": np.square,
  "stop_gradient": np.array,
  "sub": np.subtract,
  "tanh": np.tanh,
}
CALLS = {
  "checkpoint": "jaxpr",
  "closed_call": "call_jaxpr",
  "custom_jvp_call": "call_jaxpr",
  "custom_vjp_call": "call_jaxpr",
  "jit": "jaxpr",
  "remat": "jaxpr",
}
FLOATS_ONLY = {"div"}
BOOLEANS_ONLY = {"and", "not", "or"}
REDUCTIONS = {
  "reduce_and": np.all,
  "reduce_max": np.max,
  "reduce_min": np.min,
  "reduce_or": np.any,
  "reduce_sum": np.sum,
}
SHAPING = {
  "broadcast_in_dim": lambda x, shape, broadcast_dimensions, **_: np.broadcast_to(
    np.expand_dims(x, [k for k in range(len(shape)) if k not in broadcast_dimensions]), shape
  ),
  "convert_element_type": lambda x, new_dtype, **_: x.astype(new_dtype),
  "integer_pow": lambda x, y: x**y,
  "logistic": lambda x, **_: np.exp(-np.logaddexp(0, -x)),
  "reshape": lambda x, new_sizes, dimensions, **_: (
    np.transpose(x, dimensions).reshape(new_sizes)
    if dimensions is not None
    else x.reshape(new_sizes)
  ),
  "rev": lambda x, dimensions: np.flip(x, dimensions),
  "squeeze": lambda x, dimensions: np.squeeze(x, dimensions),
  "transpose": lambda x, permutation: np.transpose(x, permutation),
}


def evaluate(function, *args):
  """function(*args) with its JAX operations run by NumPy: a pytree of NumPy arrays."""
  jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
  flat = [np.asarray(x) for x in jax.tree.leaves(args)]
  with np.errstate(all="ignore"):
    out = run(jaxpr.jaxpr, jaxpr.consts, flat)
  return jax.tree.unflatten(jax.tree.structure(shapes), out)


def run(jaxpr, consts, args):
  values = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
  values.update(zip(jaxpr.invars, args, strict=True))

  def read(var):
    return np.asarray(var.val, var.aval.dtype) if isinstance(var, core.Literal) else values[var]

  for eqn in jaxpr.eqns:
    out = apply(eqn, [read(v) for v in eqn.invars])
    values.update(zip(eqn.outvars, out, strict=True))
  return [read(v) for v in jaxpr.outvars]


def apply(eqn, args):
  name, params = eqn.primitive.name, eqn.params
  floats = all(a.dtype.kind == "f" for a in args)
  booleans = all(a.dtype.kind == "b" for a in args)
  if name == "scan":
    return scan(args, **params)
  if name in CALLS:
    inner = params[CALLS[name]]
    if isinstance(inner, core.ClosedJaxpr):
      return run(inner.jaxpr, inner.consts, args)
    return run(inner, [], args)
  if (
    name in ELEMENTWISE
    and (floats or name not in FLOATS_ONLY)
    and (booleans or name not in BOOLEANS_ONLY)
  ):
    return [ELEMENTWISE[name](*args)]
  if name in REDUCTIONS:
    return [REDUCTIONS[name](args[0], axis=params["axes"])]
  if name in SHAPING and len(args) == 1:
    return [SHAPING[name](args[0], **params)]
  if name == "select_n" and args[0].dtype == bool:
    return [np.where(args[0], args[2], args[1])]
  out = eqn.primitive.bind(*args, **params)
  return [np.asarray(x) for x in (out if eqn.primitive.multiple_results else [out])]


def scan(args, *, jaxpr, length, reverse, num_consts, num_carry, **_):
  consts = args[:num_consts]
  carry, xs = args[num_consts : num_consts + num_carry], args[num_consts + num_carry :]
  rows = []
  for t in reversed(range(length)) if reverse else range(length):
    out = run(jaxpr.jaxpr, jaxpr.consts, [*consts, *carry, *(x[t] for x in xs)])
    carry = out[:num_carry]
    rows.append(out[num_carry:])
  if reverse:
    rows.reverse()
  return [*carry, *(np.stack(column) for column in zip(*rows, strict=True))]
