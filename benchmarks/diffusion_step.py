"""An update of SiD and of DMD2 against the authors' losses in PyTorch: the same U-Net, weights,
noise and optimiser.

  pip install -e '.[parity]'
  git clone https://github.com/mingyuanzhou/SiD R/SiD && git -C R/SiD checkout 01fbb13
  git clone https://github.com/tianweiy/DMD2 R/DMD2 && git -C R/DMD2 checkout 8d8fa55
  python benchmarks/diffusion_step.py --reference R [--methods sid dmd2] [--steps 30]
    [--cores 1] [--json]

An update moves the generator, one step from noise, and then the fake score, on new images of the
generator. The networks are three U-Nets of models/unet.py, width 32 at two resolutions, attention
at the lower, on 16 x 16 x 3 images of ten classes, batch 16, float32. Theirs is that U-Net in
PyTorch (diffusion_unet.py), eager, with Adam and the functions that the authors' files define:
`generator_loss` and `__call__` of SiD/training/sid_loss.py, `compute_distribution_matching_loss`
and `compute_loss_fake` of DMD2/main/edm/edm_guidance.py. Neither side has a GAN, averages or
clipping here. Each is a process of its own, so that peak memory (of its whole life, imports and
compilation included) is its own; the two take turns on the machine.

First 20 updates with the same random numbers must give the same losses; only then updates are
timed, in turns, each side drawing its own numbers as it does in training. Both processes are held
to the same cores, PyTorch to as many threads: with more cores the machine has to be idle, since its
threads wait for each other in a loop, and lose many times their speed to anything else that runs.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import types

from diffusion_unet import HEADS, SIGMA_DATA, denoiser

BATCH, SHAPE, CLASSES, LR, PARITY_STEPS, TOLERANCE = 16, (16, 16, 3), 10, 1e-5, 20, 1e-4
FILES = dict(sid="SiD/training/sid_loss.py", dmd2="DMD2/main/edm/edm_guidance.py")
COMMITS = dict(sid="01fbb13", dmd2="8d8fa55")
FIRST = dict(sid=2.5, dmd2=80.0)  # noise level of the generator, as the authors'
NETWORKS = ("teacher", "student", "fake")


def config_of(method: str, folder: pathlib.Path):
  """Our experiment on the given weights, without what the comparison leaves out."""
  from distill_jax import config as config_lib

  config = config_lib.load(f"experiments/diffusion/{method}.py:data=digits")
  config.batch_size, config.data.shape, config.ema = BATCH, SHAPE, ()
  for model in config.models.values():
    model.multipliers, model.attention, model.heads = (1, 1), (8,), HEADS
  with config.unlocked():
    config.pretrained = {name: str(folder / name) for name in NETWORKS}
  config.noise.sigma_min, config.noise.sigma_max = 0.002, 80.0
  config.sampler.sigmas = (FIRST[method],)
  config.method.ratio, config.method.adversarial = 1, 0.0
  if method == "dmd2":
    config.method.sigmas, config.method.discriminator = config.sampler.sigmas, 0.0
  for optim in (config.optim, config.fake_optim):
    optim.schedule, optim.warmup, optim.lr, optim.clip_norm = "constant", 0, LR, 0.0
    optim.b1, optim.b2 = 0.0, 0.999
  return config


def save(method: str, folder: pathlib.Path) -> None:
  """Weights that are not born at 0, and the random numbers of our first updates."""
  import jax
  import numpy as np

  from distill_jax.diffusion import network, players
  from distill_jax.models import pretrained

  config = config_of(method, folder)
  fresh = jax.jit(network.make(config, "teacher").init)(jax.random.key(0))
  for seed, name in enumerate(NETWORKS):
    noise = 0.03 if name == "teacher" else 0.003  # student and fake score are near the teacher
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    pairs = zip(leaves, keys, strict=True)
    params = tree.unflatten([x + noise * jax.random.normal(k, x.shape) for x, k in pairs])
    fresh = params if name == "teacher" else fresh
    pretrained.save(folder / name, params, config.models[name], "float32")

  @jax.jit
  def draw(t):
    empty = jax.numpy.zeros((BATCH, *SHAPE))
    first, student, fake = jax.random.split(jax.random.fold_in(jax.random.key(1), t), 3)
    if method == "dmd2":  # as few_step.simulate
      z = jax.random.normal(jax.random.split(first)[0], (1, *empty.shape))[0]
    else:
      z = jax.random.normal(first, empty.shape)
    numbers = {"z": z}
    fake = jax.random.split(fake, 3 if method == "sid" else 2)[0]
    for name, key in (("student", student), ("fake", fake)):
      noised, sigma = players.noised(config, key, empty)
      numbers[f"{name}_sigma"] = sigma
      numbers[f"{name}_noise"] = noised / sigma[:, None, None, None]
    return numbers

  drawn = [jax.device_get(draw(t)) for t in range(PARITY_STEPS)]
  draws = {f"{name}{t}": x for t, numbers in enumerate(drawn) for name, x in numbers.items()}
  np.savez(folder / "draws.npz", **draws)


def labels(step: int):
  import numpy as np

  return np.random.default_rng(step).integers(0, CLASSES, BATCH).astype(np.int32)


class Ours:
  """The compiled step of experiments/diffusion/{sid,dmd2}.py."""

  def __init__(self, method: str, folder: pathlib.Path, reference: pathlib.Path):
    import jax
    import numpy as np

    from distill_jax import train
    from distill_jax.mesh import make_mesh

    config = config_of(method, folder)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    self.jax, self.mesh = jax, jax.set_mesh(mesh)
    self.mesh.__enter__()
    program = train.build(config, mesh)
    begin = time.perf_counter()
    self.step = program.step.lower(*program.abstract).compile()
    self.compile_seconds = time.perf_counter() - begin
    self.state, self.frozen = program.init(program.keys[0], program.pretrained)
    self.x = np.zeros((BATCH, *SHAPE), np.float32)  # of the data only the labels are read

  def run(self, first: int, count: int) -> list[list[float]]:
    """Losses of generator and fake score of `count` updates from number `first` on."""
    key, losses = self.jax.random.key(1), []
    for t in range(first, first + count):
      batch = dict(x=self.x, label=labels(t))
      args = self.state, self.frozen, batch, self.jax.random.fold_in(key, t)
      self.state, metrics = self.step(*args)
      losses.append([metrics["loss"], metrics["fake_loss"]])
    return [[float(total / n) for total, n in pair] for pair in self.jax.device_get(losses)]


class Drawn:
  """torch, except for random numbers that were put in."""

  def __init__(self, torch):
    self.torch, self.put = torch, {}

  def __getattr__(self, name):
    put = self.put.pop(name, None)
    return getattr(self.torch, name) if put is None else lambda *args, **kwargs: put


def authors_class(method: str, reference: pathlib.Path, drawn: Drawn):
  """SID_EDMLoss or EDMGuidance out of the authors' file, whose other imports stand empty."""
  file = reference / FILES[method]
  modules = ("dnnlib", "torch_utils", "main", "main.edm", "main.edm.edm_network")
  stubs = {name: types.ModuleType(name) for name in modules}
  stubs["torch_utils"].persistence = types.SimpleNamespace(persistent_class=lambda cls: cls)
  stubs["main.edm.edm_network"].get_edm_network = None
  sys.modules.update(stubs)
  space: dict = dict(__name__="authors")
  exec(compile(file.read_text(), str(file), "exec"), space)
  space["torch"] = drawn
  return space["SID_EDMLoss" if method == "sid" else "EDMGuidance"]


class Theirs:
  """The authors' losses on the U-Net in PyTorch, with Adam."""

  def __init__(self, method: str, folder: pathlib.Path, reference: pathlib.Path):
    import numpy as np
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    self.torch, self.method, self.first = torch, method, FIRST[method]
    self.nets = {name: denoiser(folder / name) for name in NETWORKS}
    self.nets["teacher"].requires_grad_(False)
    adam = dict(lr=LR, betas=(0.0, 0.999), eps=1e-8)
    self.optims = {n: torch.optim.Adam(self.nets[n].parameters(), **adam) for n in NETWORKS[1:]}
    self.draws = np.load(folder / "draws.npz")
    self.drawn, self.compile_seconds = Drawn(torch), 0.0
    cls = authors_class(method, reference, self.drawn)
    if method == "sid":
      self.authors = cls(sigma_data=SIGMA_DATA)
      return
    self.authors = cls.__new__(cls)
    torch.nn.Module.__init__(self.authors)
    vars(self.authors).update(min_step=20, max_step=980, num_train_timesteps=1000)
    self.authors.sigma_data = SIGMA_DATA
    self.authors.real_unet, self.authors.fake_unet = self.nets["teacher"], self.nets["fake"]
    grid = cls.compute_loss_fake.__globals__["get_sigmas_karras"](1000, 0.002, 80.0)
    self.grid = self.authors.karras_sigmas = grid.flip(0)

  def numbers(self, name: str, t: int) -> None:
    """Puts in the random numbers of ours, as long as there are some."""
    torch = self.torch
    if f"z{t}" not in self.draws:
      if self.method == "dmd2":
        self.authors.karras_sigmas = self.grid
      return
    noise = torch.from_numpy(self.draws[f"{name}_noise{t}"]).permute(0, 3, 1, 2)
    sigma = torch.from_numpy(self.draws[f"{name}_sigma{t}"])
    self.drawn.put = dict(randn_like=noise)
    if self.method == "dmd2":  # a grid of this batch's levels
      self.authors.karras_sigmas = sigma
      self.drawn.put["randint"] = torch.arange(BATCH).reshape(-1, 1, 1, 1)
    elif name == "student":  # the place on the Karras grid, over tmax / 1000
      low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
      place = 1 - (sigma.double() ** (1 / 7) - high) / (low - high)
      self.drawn.put["rand"] = (place / 0.8).float().reshape(-1, 1, 1, 1)
    else:
      self.drawn.put["randn"] = ((sigma.log() + 1.2) / 1.2).reshape(-1, 1, 1, 1)

  def loss(self, name: str, x, label):
    authors, fake = self.authors, self.nets["fake"]
    if self.method == "dmd2":
      of = dict(student=authors.compute_distribution_matching_loss, fake=authors.compute_loss_fake)
      return next(iter(of[name](x, label)[0].values()))
    if name == "fake":
      return authors(fake, x, label).mean()
    return authors.generator_loss(self.nets["teacher"], fake, x, label, alpha=1.0).mean()

  def run(self, first: int, count: int) -> list[list[float]]:
    torch, losses = self.torch, []
    for t in range(first, first + count):
      label = torch.from_numpy(labels(t)).long()
      z = torch.randn(BATCH, SHAPE[2], *SHAPE[:2])
      if f"z{t}" in self.draws:
        z = torch.from_numpy(self.draws[f"z{t}"]).permute(0, 3, 1, 2)
      pair, level = [], torch.full((BATCH,), self.first)
      for name in ("student", "fake"):
        self.nets["fake"].requires_grad_(name == "fake")
        with torch.set_grad_enabled(name == "student"):
          x = self.nets["student"](self.first * z, level, label)
        self.numbers(name, t)
        loss = self.loss(name, x, label)
        self.optims[name].zero_grad()
        loss.backward()
        self.optims[name].step()
        pair.append(loss.item())
      losses.append(pair)
    return losses


def serve(side: str, method: str, folder: pathlib.Path, reference: pathlib.Path) -> None:
  """A process of one side: each line of stdin, "first count", is answered by a line of JSON."""
  import resource

  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # what the libraries print is no answer
  runner = dict(ours=Ours, theirs=Theirs)[side](method, folder, reference)
  print(json.dumps(dict(compile_seconds=runner.compile_seconds)), file=answers, flush=True)
  for line in sys.stdin:
    first, count = map(int, line.split())
    begin = time.perf_counter()
    losses = runner.run(first, count)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB, Linux counts KiB
    print(json.dumps(dict(losses=losses, seconds=seconds, peak=peak)), file=answers, flush=True)


def start(side: str, cores: int, *arguments: str) -> tuple[subprocess.Popen, dict]:
  process = subprocess.Popen(
    [sys.executable, __file__, "--serve", side, *arguments],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    env=dict(os.environ, JAX_PLATFORMS="cpu", OMP_NUM_THREADS=str(cores)),
  )
  return process, _answer(process, side)


def ask(process: subprocess.Popen, side: str, first: int, count: int) -> dict:
  assert process.stdin is not None
  process.stdin.write(f"{first} {count}\n")
  process.stdin.flush()
  return _answer(process, side)


def _answer(process: subprocess.Popen, side: str) -> dict:
  assert process.stdout is not None
  line = process.stdout.readline()
  if not line:
    sys.exit(f"The process of {side} died; run it alone to see why: --serve {side} --folder F.")
  return json.loads(line)


def compare(method: str, steps: int, cores: int, reference: pathlib.Path) -> dict:
  """Parity, then speed and memory, of one method."""
  with tempfile.TemporaryDirectory() as name:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])  # children keep to them
    given = ["--methods", method, "--folder", name, "--reference", str(reference)]
    subprocess.run([sys.executable, __file__, "--save", *given], check=True)
    sides = {side: start(side, cores, *given) for side in ("theirs", "ours")}
    first = {s: ask(process, s, 0, PARITY_STEPS)["losses"] for s, (process, _) in sides.items()}
    parity = max(_gap([[*zip(*first[s], strict=True)][i] for s in sides]) for i in range(2))
    blocks: dict[str, list] = {side: [] for side in sides}
    for t in range(PARITY_STEPS, PARITY_STEPS + steps if parity <= TOLERANCE else 0):
      for side, (process, _) in sides.items():
        blocks[side].append(ask(process, side, t, 1))
    for process, _ in sides.values():
      process.stdin.close()
      process.wait()
  if parity > TOLERANCE:
    return dict(method=method, speed_ratio=None, memory_ratio=None, parity=parity, first=first)
  speed = {s: 1 / statistics.median(b["seconds"] for b in blocks[s]) for s in sides}
  peak = {s: blocks[s][-1]["peak"] for s in sides}
  return dict(
    method=method,
    cores=cores,
    speed_ratio=speed["ours"] / speed["theirs"],
    memory_ratio=peak["theirs"] / peak["ours"],
    parity=parity,
    ours_steps_per_s=speed["ours"],
    theirs_steps_per_s=speed["theirs"],
    ours_peak_gib=peak["ours"],
    theirs_peak_gib=peak["theirs"],
    compile_seconds=sides["ours"][1]["compile_seconds"],
  )


def _gap(losses: list) -> float:
  """The largest difference of a loss, as a share of its largest value."""
  theirs, ours = losses
  return max(abs(a - b) for a, b in zip(theirs, ours, strict=True)) / max(map(abs, theirs))


def check(method: str, reference: pathlib.Path) -> None:
  """The authors' file is there, at the commit that was compared."""
  folder = reference / FILES[method].partition("/")[0]
  command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
  found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
  if not found.startswith(COMMITS[method]):
    sys.exit(f"{folder} is not a clone at {COMMITS[method]}: see the first lines of this file.")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
  parser.add_argument(
    "--reference", type=pathlib.Path, required=True, help="folder with the clones"
  )
  parser.add_argument("--methods", nargs="+", default=[*FILES], choices=FILES)
  parser.add_argument("--steps", type=int, default=30, help="timed updates of each side")
  parser.add_argument("--cores", type=int, default=1, help="of each side, the same ones")
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--serve", choices=("ours", "theirs"), help=argparse.SUPPRESS)
  parser.add_argument("--save", action="store_true", help=argparse.SUPPRESS)
  parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.save:
    return save(args.methods[0], args.folder)
  if args.serve:
    return serve(args.serve, args.methods[0], args.folder, args.reference)
  cells = []
  for method in args.methods:
    check(method, args.reference)
    cell = compare(method, args.steps, args.cores, args.reference)
    cells.append(cell)
    print(f"{method}: losses of {PARITY_STEPS} updates differ by {cell['parity']:.1e}")
    if cell["speed_ratio"] is None:
      print(f"  more than {TOLERANCE:.0e}: not timed")
      continue
    for side in ("theirs", "ours"):
      rate, peak = cell[f"{side}_steps_per_s"], cell[f"{side}_peak_gib"]
      print(f"  {side:7} {rate:8.2f} updates/s  {peak:6.2f} GiB peak")
    print(f"  {cell['speed_ratio']:.1f} times the speed, 1/{cell['memory_ratio']:.1f} the memory")
    print(f"  compiled in {cell['compile_seconds']:.0f} s")
  if args.json:
    print(json.dumps(dict(cells=cells)))


if __name__ == "__main__":
  main()
