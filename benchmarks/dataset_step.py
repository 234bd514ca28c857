"""A step of DM and of MTT against the authors' in PyTorch, and MTT's memory and time against the
number of student steps that are differentiated.

  pip install -e '.[parity]'
  git clone https://github.com/VICO-UoE/DatasetCondensation R/DatasetCondensation
  git -C R/DatasetCondensation checkout 53f63a6
  git clone https://github.com/GeorgeCazenavette/mtt-distillation R/mtt-distillation
  git -C R/mtt-distillation checkout 50dccea
  python benchmarks/dataset_step.py --reference R [--cells dm-32-1 dm-128-10 mtt-128-1]
    [--unrolled 10 20 40 80] [--rounds 5] [--real 256] [--cores 2] [--json]

A cell is method-width-images per class. The network is ConvNet-3 with instance norm; images are
28 x 28 x 1 of ten classes, drawn from a seed, 256 real ones of each class in a step of DM; float32.
Ours is the compiled step of experiments/dataset/{dm,mtt}.py:data=fashion (dataset_ours.py). Theirs
takes ConvNet, DiffAugment and ReparamModule from their files; the steps stand in the middle of
their main functions, so the loops around are written anew (dataset_authors.py). Their first
convolution pads grey images to 32 x 32; here it pads by 1, as ours, and both do the same work.
DM has two sides in PyTorch: `loop`, class after class as their script, and `batched`, all classes
in one forward pass. MTT has `authors`, which keeps the graph of all student steps, and our full,
remat, sqrt and tesla of methods/dataset/mtt.py, from one expert's first weights.

Each side is a process of its own; they take turns, one step each. Steps from the same images with
the same weights, real images, orders and augmentation must first give the same loss, and the same
gradient of the images: six of DM, one of each operation of the augmentation, and two of MTT (tesla
has another gradient, whose cosine is only printed). Then steps are timed, each side drawing its own
numbers. DM's augmentation stays the same on all sides, since operations differ in cost: a round is
one step of each of the six, and a step takes the mean over the operations of their medians. (By
themselves theirs draw an operation for each class, ours one for all.)

Memory is the most that was resident while steps ran, less what the process held when the first
began, its freed memory given back; what compilation took for a while is a column of its own. For
MTT also XLA's temporaries, which are the step's alone; flat means both. tesla is meant to be: remat
keeps N copies of the parameters, sqrt 2 sqrt(N) of them. The machine has to be idle: PyTorch's
threads wait for each other in a loop. Linux with glibc only.
"""

import argparse
import contextlib
import ctypes
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from dataset_authors import FOLDERS, OPERATIONS, PARITY, Cell, Theirs, held
from dataset_ours import Ours, save

COMMITS = dict(dm="53f63a6", mtt="50dccea")
SIDES = dict(dm=("ours", "batched", "loop"), mtt=("full", "remat", "sqrt", "tesla", "authors"))
ROUND = dict(dm=len(OPERATIONS), mtt=1)  # steps
LOSS, COSINE = 1e-4, 0.9999
SPEEDS = {("dm-32-1", "loop"): 1.5, ("dm-128-10", "batched"): 1.0}
FLAT, SLOWER = 1.3, 1.5  # of MTT: memory of the most steps over the fewest, time over full's


def serve(side: str, cell: Cell, folder: pathlib.Path, reference: pathlib.Path) -> None:
  """A process of one side: each line of stdin, "t parity", is answered by a line of JSON."""
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # what the libraries print is no answer
  kind = Theirs if side in ("loop", "batched", "authors") else Ours
  runner = kind(side, cell, folder, reference)
  compiling = peak() - runner.facts["before"]
  ctypes.CDLL(None).malloc_trim(0)
  pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
  facts = dict(runner.facts, held=held(), compiling=compiling)
  print(json.dumps(facts), file=answers, flush=True)
  for line in sys.stdin:
    t, parity = map(int, line.split())
    begin = time.perf_counter()
    loss, gradient = runner.step(t, bool(parity))
    seconds = time.perf_counter() - begin
    if parity:
      np.save(folder / f"{side}{t}.npy", gradient)
    line = dict(loss=loss, seconds=seconds, peak=peak())
    print(json.dumps(line), file=answers, flush=True)


def peak() -> float:
  """Most resident memory, GiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB


def start(side: str, cores: int, arguments: list[str]) -> tuple[subprocess.Popen, dict | None]:
  process = subprocess.Popen(
    [sys.executable, __file__, "--serve", side, *arguments],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    env=dict(os.environ, JAX_PLATFORMS="cpu", OMP_NUM_THREADS=str(cores)),
  )
  return process, answer(process)


def ask(process: subprocess.Popen, t: int, parity: bool) -> dict | None:
  with contextlib.suppress(BrokenPipeError):
    process.stdin.write(f"{t} {int(parity)}\n")
    process.stdin.flush()
  return answer(process)


def answer(process: subprocess.Popen) -> dict | None:
  """None: it died."""
  line = process.stdout.readline()
  return json.loads(line) if line else None


def compare(cell: Cell, rounds: int, cores: int, reference: pathlib.Path) -> dict[str, dict]:
  """Of each side parity, then time and memory; `died` where it did."""
  first, steps = PARITY[cell.method], rounds * ROUND[cell.method]
  sides: dict[str, dict] = {side: dict(died=False) for side in SIDES[cell.method]}
  with tempfile.TemporaryDirectory() as name:
    given = ["--cells", str(cell), "--real", str(cell.real), "--unrolled", str(cell.unrolled)]
    given += ["--folder", name, "--reference", str(reference), "--rounds", str(rounds)]
    subprocess.run([sys.executable, __file__, "--save", *given], check=True)
    processes, blocks = {}, {side: [] for side in sides}
    for side, facts in sides.items():
      processes[side], found = start(side, cores, given)
      facts.update(found or dict(died=True))
    for t in range(first + steps):
      if t == first:
        agree(sides, blocks, first, pathlib.Path(name))
      for side, facts in sides.items():
        if facts["died"] or (t >= first and not facts["agrees"]):
          continue
        block = ask(processes[side], t, t < first)
        facts["died"] = block is None
        blocks[side].append(block)
    for process in processes.values():
      with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
      process.wait()
  for side, facts in sides.items():
    timed = blocks[side][first:]
    if timed and not facts["died"]:
      each = ROUND[cell.method]
      medians = [statistics.median(b["seconds"] for b in timed[i::each]) for i in range(each)]
      facts.update(seconds=statistics.mean(medians), peak=timed[-1]["peak"])
  return sides


def agree(sides: dict, blocks: dict, first: int, folder: pathlib.Path) -> None:
  """Notes how far loss and gradients are from those of the first side that lives; who is too far is
  not timed."""
  living = [side for side, facts in sides.items() if not facts["died"]]
  gradients = {
    side: [np.load(folder / f"{side}{t}.npy").ravel().astype(float) for t in range(first)]
    for side in living
  }
  for side in living:
    losses = zip(blocks[side], blocks[living[0]], strict=True)
    pairs = zip(gradients[side], gradients[living[0]], strict=True)
    cosine = float(min(a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs))
    gap = max(abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in losses)
    agrees = gap <= LOSS and (side == "tesla" or cosine >= COSINE)
    loss = blocks[side][0]["loss"]
    sides[side].update(loss=loss, gap=gap, cosine=cosine, agrees=agrees)


def check(cell: Cell, reference: pathlib.Path) -> None:
  """The authors' clone is there, at the commit that was compared."""
  folder = reference / FOLDERS[cell.method]
  command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
  found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
  if not found.startswith(COMMITS[cell.method]):
    sys.exit(f"{folder} is not at {COMMITS[cell.method]}: see the first lines of this file.")


def show(cell: Cell, sides: dict[str, dict]) -> None:
  steps = f", {cell.unrolled} student steps" if cell.method == "mtt" else ""
  print(f"{cell}{steps}: compared with {next((s for s in sides if not sides[s]['died']), 'none')}")
  print("  side       loss   differs    cosine   s/step   held + more, temporaries, GiB  compiled")
  for side, facts in sides.items():
    if "gap" not in facts:
      print(f"  {side:8} died; to see why: --save, then --serve {side}, with --folder F")
      continue
    line = f"  {side:8} {facts['loss']:8.4g} {facts['gap']:8.1e} {facts['cosine']:10.7f} "
    if "seconds" not in facts:
      print(line + ("died" if facts["died"] else "not timed: does not agree"))
      continue
    line += f"{facts['seconds']:8.3f}  {facts['held']:5.2f} + {more(facts):5.2f}"
    if facts["temporaries"] is not None:
      line += f"  {facts['temporaries']:11.3f}"
      line += f"   {facts['compile_seconds']:8.0f} s + {facts['compiling']:.2f} GiB"
    print(line)


def more(facts: dict) -> float:
  """Peak memory of the steps less what was held before the first, GiB."""
  return facts["peak"] - facts["held"]


def verdict(good: bool) -> str:
  return "met" if good else "missed"


def show_speed(cell: Cell, sides: dict[str, dict]) -> None:
  """DM: ours against both of PyTorch."""
  for side in ("loop", "batched"):
    if not all("seconds" in sides[s] for s in ("ours", side)):
      print(f"  against {side}: no figure")
      continue
    ratio, target = sides[side]["seconds"] / sides["ours"]["seconds"], SPEEDS.get((str(cell), side))
    end = "" if ratio >= 1 else ", lost"
    end += "" if target is None else f"; target {target}, {verdict(ratio >= target)}"
    print(f"  {ratio:.2f} times the speed of {side}{end}")


def show_growth(cells: dict[int, dict[str, dict]]) -> None:
  """MTT: memory from the fewest to the most student steps, and time against full."""
  few, most = min(cells), max(cells)
  for side in SIDES["mtt"]:
    if not all("seconds" in sides[side] for sides in cells.values()):
      print(f"  {side:8} not at every number of steps")
      continue
    first, last = cells[few][side], cells[most][side]
    grown = [more(last) / more(first)]
    if first["temporaries"]:
      grown.append(last["temporaries"] / first["temporaries"])
    times = [
      s[side]["seconds"] / s["full"]["seconds"] for s in cells.values() if "seconds" in s["full"]
    ]
    line = f"  {side:8} memory from {few} to {most} steps: " + ", ".join(f"{g:.2f}" for g in grown)
    line += f" times (resident{', temporaries' * (len(grown) > 1)})"
    line += "" if side == "authors" else f", {verdict(max(grown) <= FLAT)}"
    if len(times) == len(cells):
      line += f"; time of full's: {', '.join(f'{x:.2f}' for x in times)}"
      line += "" if side == "authors" else f", {verdict(max(times) <= SLOWER)}"
    print(line)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
  parser.add_argument(
    "--reference", type=pathlib.Path, required=True, help="folder with the clones"
  )
  parser.add_argument("--cells", nargs="+", default=["dm-32-1", "dm-128-10", "mtt-128-1"])
  parser.add_argument("--unrolled", nargs="+", type=int, default=[10, 20, 40, 80])
  parser.add_argument("--rounds", type=int, default=5, help="timed: six steps of DM, one of MTT")
  parser.add_argument("--real", type=int, default=256, help="images of each class in a step of DM")
  parser.add_argument("--cores", type=int, default=2, help="of each side, the same ones")
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--serve", choices=SIDES["dm"] + SIDES["mtt"], help=argparse.SUPPRESS)
  parser.add_argument("--save", action="store_true", help=argparse.SUPPRESS)
  parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
  args = parser.parse_args()
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])  # children keep to them
  results = []
  for name in args.cells:
    method, width, per_class = name.split("-")
    unrolls = args.unrolled if method == "mtt" else [0]
    cells = [Cell(method, int(width), int(per_class), args.real, n) for n in unrolls]
    if args.save:
      return save(cells[0], PARITY[method] + args.rounds * ROUND[method], args.folder)
    if args.serve:
      return serve(args.serve, cells[0], args.folder, args.reference)
    check(cells[0], args.reference)
    found = {}
    for cell in cells:
      found[cell.unrolled] = sides = compare(cell, args.rounds, args.cores, args.reference)
      show(cell, sides)
      results.append(dict(cell=str(cell), unrolled=cell.unrolled, cores=args.cores, sides=sides))
    if method == "dm":
      show_speed(cells[0], found[0])
    else:
      show_growth(found)
  if args.json:
    print(json.dumps(dict(cells=results)))


if __name__ == "__main__":
  main()
