"""Plans a run on a TPU slice without one: memory, FLOPs, collectives, a roofline of the real step.

  python -m distill_jax.plan --config experiments/llm/kd.py --topology v5e:16x16 [--json FILE]
    [--config.key=value ...]

XLA's TPU compiler, which comes in libtpu, builds the experiment's step for a described slice. What
it says of memory is to be trusted: this is the program that the slice would run, and one that does
not fit is refused. FLOPs, HBM traffic and collectives are read from its text (`hlo_cost`). The
step time is an estimate, never a measurement: the longest of FLOPs at the chip's bfloat16 peak, HBM
bytes at its memory bandwidth and bytes sent at its link bandwidth, as if the three overlapped
perfectly and all links were busy. HBM bytes are an upper bound, so that term may be too long.

Exit codes: 0 the step fits, 1 it does not, 2 the command is wrong or the compiler is not installed.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import re
import sys
import time
from typing import Any, NamedTuple

from distill_jax.config import ConfigError, did_you_mean

GIB = 2**30


class Chip(NamedTuple):
  hbm: float  # bytes
  flops: float  # bfloat16, per second
  hbm_rate: float  # bytes per second
  link_rate: float  # bytes per second over all inter-chip links, both directions together
  axes: int  # of its torus
  largest: int  # chips in a pod


# https://cloud.google.com/tpu/docs/v4, .../v5e, .../v5p, .../v6e and .../tpu7x; the last one tables
# v5p and v6e too. Links of v4: Jouppi et al., TPU v4 (arXiv:2304.01433), table 4, 6 x 50 GB/s each
# way.
CHIPS = {
  "v4": Chip(32 * GIB, 275e12, 1200e9, 600e9, 3, 4096),
  "v5e": Chip(16 * GIB, 197e12, 819e9, 400e9, 2, 256),
  "v5p": Chip(95 * GIB, 459e12, 2765e9, 1200e9, 3, 8960),
  "v6e": Chip(32 * GIB, 918e12, 1638e9, 800e9, 2, 256),
  "tpu7x": Chip(192 * GIB, 2307e12, 7380e9, 1200e9, 3, 9216),
}
# a v4 chip is one device to a TPU VM; the description alone would make it two
_TOPOLOGY = {"v4": {"chip_config_name": "megacore"}}
# jaxlib 0.10 can't print a program whose collectives run on the SparseCores, as they do on tpu7x
_COLLECTIVES = ("all_gather", "all_reduce", "reduce_scatter", "nd_reduce_scatter")
_OPTIONS = {
  "tpu7x": {f"xla_tpu_enable_sparse_core_collective_offload_{c}": False for c in _COLLECTIVES}
}


def parse_topology(text: str) -> tuple[str, tuple[int, ...]]:
  """'v5e:16x16' -> ('v5e', (16, 16)). Raises ConfigError with what would be right."""
  name, _, sizes = text.partition(":")
  if name not in CHIPS:
    raise ConfigError(f"Unknown TPU {name!r} in topology {text!r}." + did_you_mean(name, CHIPS))
  chip, form = CHIPS[name], "x".join("AxBxC"[: 2 * CHIPS[name].axes - 1 : 2])
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)" + f"{{{chip.axes - 1}}}", sizes):
    raise ConfigError(f"Topology {text!r}: {name} slices are written {name}:{form}.")
  shape = tuple(map(int, sizes.split("x")))
  if math.prod(shape) > chip.largest:
    raise ConfigError(f"Topology {text!r}: a {name} pod has {chip.largest} chips.")
  return name, shape


def slice_devices(topology: str) -> list:
  """The devices of a described slice; no chip is needed.

  Raises:
    ConfigError: the topology is unknown, or the compiler is not installed.
  """
  name, _ = parse_topology(topology)
  if importlib.util.find_spec("libtpu") is None:
    raise ConfigError("The TPU compiler is missing: pip install 'distill_jax[tpu]'")
  # read by libtpu when it loads: no metadata server, no lock on a chip, no log lines
  os.environ |= {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
  }
  import jax
  from jax.experimental import topologies

  try:
    return topologies.get_topology_desc(topology, "tpu", **_TOPOLOGY.get(name, {})).devices
  except jax.errors.JaxRuntimeError as error:
    raise ConfigError(f"Topology {topology!r}: {str(error).splitlines()[0]}") from error


def plan(step, arguments: dict[str, Any], topology: str, devices: int) -> dict[str, Any]:
  """Compiles a step for a slice and adds up what it costs.

  Args:
    step: a jitted function whose arguments' shardings name devices of `slice_devices(topology)`.
    arguments: its arguments in order, named: trees of ShapeDtypeStruct with shardings.
    topology: as in `parse_topology`.
    devices: the number of `slice_devices(topology)`.

  Returns:
    What --json writes. Bytes, FLOPs and seconds; all but `chips` and `devices` are of one device,
    which is a chip, on tpu7x half of one. Without `work` and `estimate` if the compiler refused.
  """
  import jax

  from distill_jax import hlo_cost

  name, shape = parse_topology(topology)
  chips, chip = math.prod(shape), CHIPS[name]
  share = chips / devices  # of a chip, per device
  sizes = {key: _local_bytes(tree) for key, tree in arguments.items()}
  report: dict[str, Any] = {"topology": topology, "chips": chips, "devices": devices}
  memory = report["memory"] = {"hbm": chip.hbm * share, "of_arguments": sizes}
  started = time.monotonic()
  try:
    compiled = step.lower(*arguments.values()).compile(compiler_options=_OPTIONS.get(name))
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    report |= {"fits": False, "refused": str(error).splitlines()[0]}
    return report
  report["compile_seconds"] = time.monotonic() - started
  sizes = compiled.memory_analysis()
  memory |= {
    "arguments": sizes.argument_size_in_bytes,
    "outputs": sizes.output_size_in_bytes,
    "aliased": sizes.alias_size_in_bytes,
    "temporaries": sizes.temp_size_in_bytes,
    "program": sizes.generated_code_size_in_bytes,
  }
  kept = memory["outputs"] - memory["aliased"]
  memory["total"] = memory["arguments"] + kept + memory["temporaries"] + memory["program"]
  report["fits"] = memory["total"] <= memory["hbm"]
  cost = hlo_cost.analyse(compiled.as_text())
  collectives = [
    {"kind": kind, "group": group, "executions": n, "bytes": moved, "sent": sent}
    for (kind, group), (n, moved, sent) in sorted(cost.collectives.items())
  ]
  report["work"] = {
    "flops": cost.flops,
    "hbm_bytes": cost.hbm_bytes,
    "sent_bytes": sum(c["sent"] for c in collectives),
    "collectives": collectives,
    "loops_counted_once": cost.unknown_loops,
    "custom_calls_not_counted": cost.custom_calls,
  }
  report["estimate"] = roofline(report["work"], chip, share)
  return report


def roofline(work: dict[str, Any], chip: Chip, share: float = 1.0) -> dict[str, Any]:
  """Seconds of each resource, the longest as the step's estimate, and its name as the bound.

  A chip sends with half of its link bandwidth, which the vendor counts in both directions.
  """
  seconds = {
    "flops": work["flops"] / (chip.flops * share),
    "hbm": work["hbm_bytes"] / (chip.hbm_rate * share),
    "links": work["sent_bytes"] / (chip.link_rate / 2 * share),
  }
  bound = max(seconds, key=lambda k: seconds[k])
  return {"seconds": seconds, "step_seconds": seconds[bound], "bound": bound}


def _local_bytes(tree: Any) -> int:
  """Bytes of a tree on one device, without padding."""
  import jax

  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def show(report: dict[str, Any]) -> None:
  """Prints a report as tables."""
  from rich.console import Console
  from rich.table import Table

  console, memory = Console(), report["memory"]
  per = "a chip" if report["chips"] == report["devices"] else "half a chip"

  def table(title, columns, rows, notes=()):
    grid = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
      grid.add_column(column, justify="right" if i else "left")
    for row in rows:
      grid.add_row(*row)
    console.print(grid, *notes, sep="\n", highlight=False)

  console.print(f"{report['config']} on {report['topology']}: {report['mesh']}", highlight=False)
  parts = ("arguments", "outputs", "aliased", "temporaries", "program", "total", "hbm")
  sizes = [(k, _bytes(memory[k])) for k in parts if k in memory]
  held = [(f"  of which {k}", _bytes(v)) for k, v in memory["of_arguments"].items()]
  fits = [("fits", "yes" if report["fits"] else "no")]
  refused = [report["refused"]] if "refused" in report else []
  table(f"Memory of {per}", ("", ""), [*sizes[:1], *held, *sizes[1:], *fits], refused)
  if "work" not in report:
    return
  work, estimate = report["work"], report["estimate"]
  columns = ("", "devices", "times", "buffers", "sent")
  used = [
    (c["kind"], str(c["group"]), f"{c['executions']:,.0f}", _bytes(c["bytes"]), _bytes(c["sent"]))
    for c in work["collectives"]
  ]
  table(f"Collectives of {per} in a step", columns, used)
  amounts = {
    "flops": _decimal(work["flops"], "FLOP"),
    "hbm": "at most " + _bytes(work["hbm_bytes"]),
    "links": _bytes(work["sent_bytes"]),
  }
  terms = [
    (k, amounts[k], _decimal(s, "s"), "<- the bound" if k == estimate["bound"] else "")
    for k, s in estimate["seconds"].items()
  ]
  notes = [f"Trip count unknown, counted once: {name}" for name in work["loops_counted_once"]]
  notes += [f"FLOPs unknown, not counted: {name}" for name in work["custom_calls_not_counted"]]
  title = f"Step time, an estimate: {_decimal(estimate['step_seconds'], 's')}"
  table(title, ("", f"{per} in a step", "takes", ""), terms, notes)


def _bytes(n: float) -> str:
  power = min(3, max(0, math.frexp(n)[1] - 1) // 10)
  return f"{n / 1024**power:,.2f} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def _decimal(x: float, unit: str) -> str:
  power = max(-3, min(5, math.floor(math.log10(x) / 3))) if x else 0
  return f"{x / 1000.0**power:,.2f} {'num kMGTP'[power + 3].strip()}{unit}"


def main(argv: list[str]) -> int:
  arguments = argparse.ArgumentParser(prog="python -m distill_jax.plan", allow_abbrev=False)
  arguments.add_argument(
    "--topology", required=True, help=f"{', '.join(CHIPS)} and a shape: v5e:16x16"
  )
  arguments.add_argument("--json", type=pathlib.Path, help="also write the plan to this file")
  os.environ["JAX_PLATFORMS"] = "cpu"  # nothing here may look for a chip
  try:
    from distill_jax import train

    parsed, config = train.command_line(arguments, argv)
    devices = slice_devices(parsed.topology)
    if config.mesh.slices > 1:
      raise ConfigError("A plan is of one slice: set --config.mesh.slices=1, and mesh.data for it.")
    report = {"config": parsed.config} | _plan_experiment(train, config, parsed.topology, devices)
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  show(report)
  if parsed.json:
    parsed.json.write_text(json.dumps(report, indent=2) + "\n")
  return 0 if report["fits"] else 1


def _plan_experiment(train, config, topology: str, devices: list) -> dict[str, Any]:
  import jax

  mesh = train.make_mesh(config.mesh, devices)
  program = train.build(config, mesh)
  named = dict(zip(("state", "frozen", "batch", "key"), program.abstract, strict=True))
  print(f"Compiling for {len(devices)} devices; a large model takes minutes.", file=sys.stderr)
  with jax.set_mesh(mesh):
    report = plan(program.step, named, topology, len(devices))
  sizes = " x ".join(f"{axis} {n}" for axis, n in mesh.shape.items())
  versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")}
  return {"mesh": sizes, "versions": versions} | report


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
