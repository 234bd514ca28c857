"""What a compiled program costs one device: FLOPs, HBM traffic, collectives.

XLA's `cost_analysis()` counts the body of a while loop once, so 32 scanned layers look like one.
Here the program is walked from its entry, and what a body costs is multiplied by how often it runs.
"""

import dataclasses
import math
import re

from distill_jax.hlo import Computation, Instruction, Module, hbm_size, members, shape, size

# what a ring algorithm sends from one of n devices, as a share of the whole buffer
SENT = {
  "all-gather": lambda n: (n - 1) / n,
  "all-reduce": lambda n: 2 * (n - 1) / n,
  "reduce-scatter": lambda n: (n - 1) / n,
  "all-to-all": lambda n: (n - 1) / n,
  "ragged-all-to-all": lambda n: (n - 1) / n,
  "collective-permute": lambda n: 1.0,
  "collective-broadcast": lambda n: 1.0,
}
# names and containers move no bytes; what loops, calls and branches move is counted inside them
_FREE = re.compile(
  "parameter|constant|get-tuple-element|tuple|bitcast|after-all|while|conditional|call|async-start|"
  "async-update|opt-barrier|partition-id|replica-id|add-dependency|.*-done"
)
_SLICES = ("dynamic-slice", "slice", "gather")
_BOOKKEEPING = re.compile(
  r"AllocateBuffer|ConcatBitcast|AsyncCollective(Start|Done)|\w*GatherIndices\w*|\w*ScatterIndices\w*"
)


@dataclasses.dataclass
class Cost:
  """What one device does in one execution.

  Attributes:
    flops: of dot and convolution, a multiply-add being two. Element-wise work is not counted. A
      conditional counts as its branch of most FLOPs.
    hbm_bytes: operands and results, as far as they live in HBM, of all instructions outside
      fusions: an upper bound, for nothing is taken to be reused on the chip unless the compiler
      placed it there (a memory space other than 0). Slices, gathers and in-place updates count the
      part that they touch, as in XLA's HloCostAnalysis.
    collectives: (kind, group size) -> [executions, bytes, sent]. `bytes` is the whole buffer, the
      result of an all-gather, the operand of the others; `sent` is what leaves one device (SENT).
    unknown_loops: op_name of the loops whose trip count was not found: each body is counted once.
    custom_calls: target -> executions of calls of unknown FLOPs (a Pallas kernel that does not
      state its cost_estimate).
  """

  flops: float = 0.0
  hbm_bytes: float = 0.0
  collectives: dict[tuple[str, int], list[float]] = dataclasses.field(default_factory=dict)
  unknown_loops: list[str] = dataclasses.field(default_factory=list)
  custom_calls: dict[str, float] = dataclasses.field(default_factory=dict)

  def add(self, other: "Cost", times: float = 1) -> None:
    self.flops += times * other.flops
    self.hbm_bytes += times * other.hbm_bytes
    for key, counts in other.collectives.items():
      mine = self.collectives.get(key, [0.0, 0.0, 0.0])
      self.collectives[key] = [a + times * b for a, b in zip(mine, counts, strict=True)]
    self.unknown_loops += [x for x in other.unknown_loops if x not in self.unknown_loops]
    for target, count in other.custom_calls.items():
      self.custom_calls[target] = self.custom_calls.get(target, 0.0) + times * count


def analyse(text: str) -> Cost:
  """Cost of an optimized HLO module, as text. Raises ValueError if it has no entry computation."""
  module = Module(text)
  return _cost(module, module.entry, {}, None)


def _cost(module: Module, comp: Computation, env: dict, fused: set[str] | None) -> Cost:
  """Cost of one execution of `comp`.

  `env` is what is known of its parameters (`Module.value`). `fused` is given inside a fusion,
  where nothing touches HBM: the channels of the collectives met so far around it. The TPU compiler
  spreads one asynchronous collective over several fusions, all with its channel: the first counts.
  """
  cost, channels = Cost(), set() if fused is None else fused
  for i in comp.instructions.values():
    op = i.opcode.removesuffix("-start")
    types = [comp.instructions[o].type for o in i.operands]
    if op == "while":
      trips, invariants = module.loop(comp, i, env)
      body = module.computations[i.find(r"body=%?([\w.\-]+)")]
      cost.add(_cost(module, body, {0: invariants}, fused), 1 if trips is None else trips)
      if trips is None:
        cost.add(Cost(unknown_loops=[i.find(r'op_name="([^"]*)"', i.name)]))
    elif op == "conditional":
      branches = [_cost(module, b, {}, fused) for b in _branches(module, i)]
      cost.add(max(branches, key=lambda c: (c.flops, c.hbm_bytes)))
    elif op == "fusion":
      cost.add(_cost(module, module.called(i), {}, channels))
    elif op in ("call", "async"):
      known = {k: module.value(comp, o, env) for k, o in enumerate(i.operands)}
      cost.add(_cost(module, module.called(i), known, fused))
    elif op == "dot":
      cost.flops += dot_flops(i, types[0])
    elif op == "convolution":
      cost.flops += convolution_flops(i, types[0], types[1])
    elif op == "custom-call":
      cost.add(_custom_call(i))
    elif op in SENT:
      channel = i.find(r"channel_id=(\d+)")
      if fused is None or channel not in fused:
        cost.add(_collective(module, comp, i, sum(map(size, types))))
      channels.update({channel} - {""})
    if fused is None:
      cost.hbm_bytes += _traffic(module, i, types)
  return cost


def _branches(module: Module, i: Instruction) -> list[Computation]:
  listed = i.find(r"branch_computations=\{([^}]*)\}")
  names = re.findall(r"[\w.\-]+", listed) or re.findall(r"_computation=%?([\w.\-]+)", i.attributes)
  return [module.computations[name] for name in names]


def _custom_call(i: Instruction) -> Cost:
  target = i.find(r'custom_call_target="([^"]*)"')
  if flops := i.find(r'"cost_estimate":\{[^}]*"flops":"?(\d+)'):
    return Cost(flops=float(flops))
  return Cost() if _BOOKKEEPING.fullmatch(target) else Cost(custom_calls={target: 1.0})


def _collective(module: Module, comp: Computation, i: Instruction, operands: float) -> Cost:
  kind, n = i.opcode.removesuffix("-start"), group_size(i, module.devices)
  if comp.name.startswith("all-reduce-scatter"):  # the TPU compiler's reduce-scatter
    kind = "reduce-scatter"
  moved = operands * n if kind == "all-gather" else operands
  return Cost(collectives={(kind, n): [1.0, moved, moved * SENT[kind](n)]})


def group_size(i: Instruction, devices: int) -> int:
  """Devices in one group of a collective, in each of the three ways that HLO writes groups."""
  if i.opcode.startswith("collective-permute"):
    return 2  # one sends, one receives
  if found := i.find(r"replica_groups=\[\d+,(\d+)\]<="):
    return int(found)
  if found := i.find(r"replica_groups=(mesh\[[^\]]*\][^{]*\{[^}]*\})"):
    axes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", found)}
    used = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[found.index("{") :])
    return math.prod(int(part or axes[name]) for name, part in used)
  listed = i.find(r"replica_groups=\{\{([\d,]*)\}")
  return listed.count(",") + 1 if listed else devices


def dot_flops(i: Instruction, lhs: str) -> float:
  """2 x elements of the result x elements contracted."""
  contracted = re.findall(r"\d+", i.find(r"lhs_contracting_dims=\{([\d,]*)\}"))
  return 2.0 * math.prod(shape(i.type)) * math.prod(shape(lhs)[int(d)] for d in contracted)


def convolution_flops(i: Instruction, lhs: str, rhs: str) -> float:
  """2 x batch x output features x input features of a group x window positions that hit data.

  The TPU compiler writes a dot as a convolution, and a batched one with the batch as a spatial axis
  whose window mostly hits padding: counting that too would be wrong by the size of the batch.
  """
  inputs, kernel, outputs = re.split("_|->", i.find(r"dim_labels=(\w+->\w+)"))
  left, right, out = shape(lhs), shape(rhs), shape(i.type)
  fields = dict(f.split("=") for f in i.find(r"window=\{([^}]*)\}").split())
  hits = 1
  for n, axis in enumerate(sorted(c for c in inputs if c.isdigit())):
    value = {k: v.split("x")[n].split("_")[0] for k, v in fields.items()}
    taps, stride, pad, base, step = (
      int(value.get(k, default))
      for k, default in (
        ("size", 1),
        ("stride", 1),
        ("pad", 0),
        ("lhs_dilate", 1),
        ("rhs_dilate", 1),
      )
    )
    last = (left[inputs.index(axis)] - 1) * base
    positions = out[outputs.index(axis)]
    hits *= sum(_hits(positions, stride, tap * step - pad, last, base) for tap in range(taps))
  batch = left[inputs.index("b")] // int(i.find(r"batch_group_count=(\d+)", "1"))
  return 2.0 * batch * right[kernel.index("o")] * right[kernel.index("i")] * hits


def _hits(positions: int, stride: int, offset: int, last: int, base: int) -> int:
  """How many p in [0, positions) have offset + stride p in [0, last] and divisible by base."""
  low, high = max(0, -(offset // stride)), min(positions - 1, (last - offset) // stride)
  period = base // math.gcd(stride, base)
  first = (p for p in range(low, low + period) if (offset + stride * p) % base == 0)
  return max(0, (high - next(first, high + period)) // period + 1)


def _traffic(module: Module, i: Instruction, types: list[str]) -> float:
  """Bytes of HBM that an instruction outside a fusion reads and writes."""
  op, result, parts = i.opcode.removesuffix("-start"), i.type, members(i.type)
  if _FREE.fullmatch(i.opcode) or _BOOKKEEPING.fullmatch(i.find(r'target="([^"]*)"')):
    return 0.0
  if op == "fusion":
    return _fusion_traffic(module, i, types)
  if op != i.opcode and op != "all-reduce" and len(parts) > 1:  # (operands, result, flags)
    result = parts[0 if op == "copy" else 1]
  if op in _SLICES:
    return size(result) * bool(hbm_size(types[0])) + hbm_size(result)
  if op == "dynamic-update-slice":
    return hbm_size(types[1]) + size(types[1]) * bool(hbm_size(result))
  if op == "scatter":  # reads and writes the places that the updates fall on
    return 3.0 * sum(map(hbm_size, types[len(types) // 2 :]))
  return sum(map(hbm_size, [*types, result]))


def _fusion_traffic(module: Module, i: Instruction, types: list[str]) -> float:
  inner, total = module.called(i), 0.0
  parameters = inner.parameters()
  aliases = re.findall(r"\{(\d*)\}: \((\d+)", i.find(r"output_to_operand_aliasing=\{(.*?\))\}"))
  passed, through = {out or "0" for out, _ in aliases}, {operand for _, operand in aliases}
  for k, type_ in enumerate(types):
    if str(k) not in through:
      total += min(hbm_size(type_), _read(module, inner, parameters[k]))
  is_tuple = inner.root.opcode == "tuple"
  roots = inner.root.operands if is_tuple else [inner.root.name] * len(members(i.type))
  for k, (type_, root) in enumerate(zip(members(i.type), roots, strict=True)):
    if str(k) not in passed:
      total += min(hbm_size(type_), _written(module, inner, root))
  return total


def _read(module: Module, comp: Computation, name: str) -> float:
  """Bytes that a fusion reads of a parameter: a part, if it only slices or updates it in place."""
  total = 0.0
  for user in comp.instructions.values():
    places = [k for k, operand in enumerate(user.operands) if operand == name]
    if not places:
      continue
    if user.opcode == "bitcast":
      total += _read(module, comp, user.name)
    elif user.opcode == "fusion":
      inner = module.called(user)
      total += sum(_read(module, inner, inner.parameters()[k]) for k in places)
    elif user.opcode in _SLICES and places == [0]:
      total += size(user.type)
    elif user.opcode != "dynamic-update-slice" or places != [0]:
      return math.inf
  return total


def _written(module: Module, comp: Computation, name: str) -> float:
  """Bytes that a fusion writes of a result: only the update, if it updates an operand in place."""
  i = comp.instructions[name]
  if i.opcode == "bitcast":
    return _written(module, comp, i.operands[0])
  if i.opcode == "fusion" and not i.type.startswith("("):
    return _written(module, module.called(i), module.called(i).root.name)
  if i.opcode == "dynamic-update-slice":
    return size(comp.instructions[i.operands[1]].type)
  return size(i.type)
