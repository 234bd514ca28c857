"""Reads the text of an optimized HLO module: instructions, types, and how often a loop runs.

`compiled.as_text()` is the one description of a compiled program that every backend gives. Read
here is the part of the grammar that XLA prints after optimization: an instruction a line, operands
by name.
"""

import math
import operator
import re
from collections.abc import Iterator
from typing import Any, NamedTuple


class Instruction(NamedTuple):
  name: str
  opcode: str
  type: str  # "bf16[8,128]{1,0:T(8,128)S(1)}", or several in parentheses
  operands: tuple[str, ...]
  literal: str  # the text between the parentheses: a constant's value, a parameter's number
  attributes: str

  def find(self, pattern: str, default: str = "") -> str:
    """The first group of `pattern` in the attributes."""
    match = re.search(pattern, self.attributes)
    return match[1] if match else default


class Computation(NamedTuple):
  name: str
  instructions: dict[str, Instruction]
  root: Instruction

  def parameters(self) -> dict[int, str]:
    return {int(i.literal): i.name for i in self.instructions.values() if i.opcode == "parameter"}


class Module:
  """An optimized HLO module.

  Attributes:
    computations: by name.
    entry: the computation where it starts.
    devices: how many run it.

  Raises:
    ValueError: the text has no entry computation.
  """

  def __init__(self, text: str):
    counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", text[: text.find("\n")])
    self.devices = math.prod(map(int, counts))
    self.computations: dict[str, Computation] = {}
    name = entry = root = ""
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
      if start := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
        name, instructions = start[2], {}
        entry = name if start[1] else entry
      elif line.startswith("}") and name:
        self.computations[name] = Computation(name, instructions, instructions[root])
        name = ""
      elif name and (match := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)", line)):
        instructions[match[2]] = _instruction(match[2], re.sub(r"/\*.*?\*/", "", match[3]))
        root = match[2] if match[1] else root
    if not entry:
      raise ValueError("no ENTRY computation in the HLO text")
    self.entry = self.computations[entry]

  def called(self, i: Instruction) -> Computation:
    """What a fusion, a call or an asynchronous start runs."""
    return self.computations[i.find(r"(?:calls|to_apply)=%?([\w.\-]+)")]

  def loop(self, caller: Computation, i: Instruction, env: dict) -> tuple[Any, dict]:
    """Trip count of a while instruction, None if unknown, and what its body leaves unchanged.

    Taken from `known_trip_count` where the compiler wrote it. The TPU compiler does not: there
    the counter is followed from its start in `caller` through two turns of the body, and if it
    moves in equal steps, the first turn at which the condition fails is searched.

    Args:
      caller: the computation that holds `i`.
      env: what is known of the caller's parameters, see `value`.

    Returns:
      The count, and {tuple index: value} of the loop-invariant integers; the body's `env` is
      `{0: that}`.
    """
    body = self.computations[i.find(r"body=%?([\w.\-]+)")]
    condition = self.computations[i.find(r"condition=%?([\w.\-]+)")]
    states = [self.value(caller, i.operands[0], env)]
    for _ in range(2):
      states.append(self.value(body, body.root.name, {0: states[-1]}))
    first, second, third = (
      {k: v for k, v in (s or {}).items() if isinstance(v, int)} for s in states
    )
    steps = {
      k: second[k] - first[k]
      for k in first
      if k in third and third[k] - second[k] == second[k] - first[k]
    }

    def runs(turn: int) -> Any:
      state = {k: first[k] + turn * step for k, step in steps.items()}
      return self.value(condition, condition.root.name, {0: state})

    invariants = {k: first[k] for k, step in steps.items() if step == 0}
    if known := i.find(r'known_trip_count":\{"n":"(\d+)"'):
      return int(known), invariants
    low, high = -1, 0  # the condition holds at `low`, if that is a turn
    while runs(high) and high < 2**40:
      low, high = high, 2 * high + 1
    if runs(high) is None or high >= 2**40:
      return None, invariants
    while high - low > 1:
      middle = (low + high) // 2
      low, high = (middle, high) if runs(middle) else (low, middle)
    return high, invariants

  def value(self, comp: Computation, name: str, env: dict) -> Any:
    """The integer that a scalar instruction computes, {index: value} of a tuple, None if unknown.

    `env` is what is known of the computation's parameters, by number and in the same form. What is
    found on the way is kept in it, by name.
    """
    if name not in env:
      i = comp.instructions[name]
      scalar = re.match(r"(?:[su]\d+|pred)\[1?\]", i.type)
      env[name] = self._value(comp, i, env) if scalar or i.type.startswith("(") else None
    return env[name]

  def _value(self, comp: Computation, i: Instruction, env: dict) -> Any:
    if i.opcode == "constant":
      text = re.sub(r"[{} ]", "", i.literal).replace("true", "1").replace("false", "0")
      return int(text) if re.fullmatch(r"-?\d+", text) else None
    if i.opcode == "parameter":
      return env.get(int(i.literal))
    if i.opcode == "get-tuple-element":
      whole = self.value(comp, i.operands[0], env)
      return whole.get(int(i.find(r"index=(\d+)"))) if isinstance(whole, dict) else None
    function = _SCALAR.get(i.find(r"direction=(\w+)", i.opcode))
    if function is None and i.opcode not in ("tuple", "fusion", "call", *_SAME_VALUE):
      return None
    values = [self.value(comp, o, env) for o in i.operands]
    if i.opcode in _SAME_VALUE:
      return values[0]
    if i.opcode == "tuple":
      return dict(enumerate(values))
    if function is None:
      inner = self.called(i)
      return self.value(inner, inner.root.name, dict(enumerate(values)))
    return function(*values) if all(isinstance(v, int) for v in values) else None


_SAME_VALUE = ("copy", "bitcast", "convert", "reshape", "copy-done", "opt-barrier")
_SCALAR = {
  "add": operator.add,
  "subtract": operator.sub,
  "multiply": operator.mul,
  "LT": operator.lt,
  "LE": operator.le,
  "GT": operator.gt,
  "GE": operator.ge,
  "EQ": operator.eq,
  "NE": operator.ne,
}


def _instruction(name: str, text: str) -> Instruction:
  end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
  opened = text.index("(", end)
  closed = _closing(text, opened)
  inside = text[opened + 1 : closed]
  operands = tuple(re.findall(r"%([\w.\-]+)", inside))
  return Instruction(name, text[end:opened].strip(), text[:end], operands, inside, text[closed:])


def _closing(text: str, start: int) -> int:
  depth = 0
  for match in re.compile(r"[()]").finditer(text, start):
    depth += 1 if match[0] == "(" else -1
    if depth == 0:
      return match.start()
  raise ValueError(f"unbalanced parentheses in the HLO text: {text[:80]}")


def members(type_: str) -> list[str]:
  """The types in a tuple type; an array type alone."""
  if not type_.startswith("("):
    return [type_]
  found, depth, start = [], 0, 1
  for match in re.finditer(r"[(){}\[\],]", type_):
    depth += {",": 0, "(": 1, "{": 1, "[": 1}.get(match[0], -1)
    if depth == 0 or (match[0] == "," and depth == 1):
      found.append(type_[start : match.start()].strip())
      start = match.end()
  return found


def _arrays(type_: str) -> Iterator[tuple[float, list[int], bool]]:
  """Of each array in a type: bytes per element, shape, is it in HBM (memory space 0)?"""
  for dtype, dims, layout in re.findall(r"(\w+)\[([\d,<=]*)\](\{[^{}]*\})?", type_):
    bits = 8 if dtype == "pred" else int("0" + "".join(re.findall(r"\d+", dtype)[:1]))
    yield bits / 8, [int(d) for d in re.findall(r"\d+", dims)], not re.search(r"S\([1-9]", layout)


def size(type_: str) -> float:
  """Bytes of a type, without the padding of tiled layouts."""
  return sum(width * math.prod(dims) for width, dims, _ in _arrays(type_))


def hbm_size(type_: str) -> float:
  """As `size`, of what the compiler left in HBM."""
  return sum(width * math.prod(dims) for width, dims, in_hbm in _arrays(type_) if in_hbm)


def shape(type_: str) -> list[int]:
  """Shape of an array type."""
  return next(dims for _, dims, _ in _arrays(type_))
