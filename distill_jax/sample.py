"""Samples of a trained student of the diffusion family, and its way to them, as pictures.

  python -m distill_jax.sample --workdir runs/sid --out samples.png [--trajectories paths.png]
  [--n 64]

They are drawn as in the run's evals (config.sampler, the first moving average, the same noise).
"""

import argparse
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax import train
from distill_jax.checkpoint import Checkpoints
from distill_jax.config import ConfigError
from distill_jax.evals import samples as samples_lib
from distill_jax.evals.samples import Trajectory
from distill_jax.mesh import make_mesh


def samples(workdir: pathlib.Path, n: int = 0) -> tuple[Trajectory, np.ndarray]:
  """The sampler's way to n samples (2000 points or 64 images if n is 0) of the latest checkpoint of
  a run, or of where it began, and n held-out examples with the same labels; of the first seed where
  there are several. The samples are the last of `states`.

  Raises:
    ConfigError: there is no run, or it is not one of this family.
  """
  config = config_lib.load_saved(workdir)
  if "sampler" not in config:
    raise ConfigError(f"{workdir} is a run of {config.method.name}, which makes no samples.")
  n = n or (2000 if config.data.name == "points" else 64)
  real = method_lib.load("data", config.data.name).validation(config, n)
  mesh = make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    program = train.build(config, mesh)
    data = iter(method_lib.load("data", config.data.name).make(config))
    folder = workdir / "checkpoints"
    with Checkpoints(folder, every=config.save_every, keep=config.keep) as checkpoints:
      state = checkpoints.restore(program.abstract[0], data)
    if state is None:
      state, _ = program.init(program.keys[0], program.pretrained)
    params = next(iter(state["ema"].values()), state["student"])
    if config.seeds > 1:
      params = jax.tree.map(lambda x: x[0], params)
    way = jax.jit(lambda p: samples_lib.trajectory(config, p, real["label"]))(params)
    return jax.device_get(way), real["x"]


def draw(panels: dict[str, np.ndarray], out: pathlib.Path, *, title: str = "") -> None:
  """One panel for each set: points [N, 2] as a cloud, images [N, H, W, C] in [-1, 1] as a grid."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  columns = min(len(panels), 6)
  rows = -(-len(panels) // columns)
  figure, axes = plt.subplots(
    rows, columns, figsize=(2.6 * columns, 2.8 * rows), squeeze=False, layout="constrained"
  )
  limit = 1.25 * max(float(np.abs(x).max()) for x in list(panels.values())[:1])
  for axis, (name, x) in zip(axes.flat, panels.items(), strict=False):
    axis.set_title(name, fontsize=9)
    if x.ndim == 2:
      axis.plot(x[:, 0], x[:, 1], ".", ms=1.5, alpha=0.5, color="#4477AA")
      axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    else:
      axis.imshow(grid(framed(x)), cmap="gray", vmin=0, vmax=1)
  for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
  for axis in axes.flat[len(panels) :]:
    axis.axis("off")
  if title:
    figure.suptitle(title, x=0.01, ha="left")
  figure.savefig(out, dpi=130)
  plt.close(figure)


def framed(x: np.ndarray) -> np.ndarray:
  """Images [N, H, W, C] with a white frame, so that neighbours in a grid stand apart."""
  gap = max(1, x.shape[1] // 16)
  return np.pad(x, ((0, 0), (gap, gap), (gap, gap), (0, 0)), constant_values=1)


def grid(x: np.ndarray, columns: int = 0) -> np.ndarray:
  """Images [N, H, W, C] in [-1, 1] as one image in [0, 1], as square as can be without a number of
  columns; what is left over of a last row is dropped."""
  columns = columns or int(np.ceil(np.sqrt(len(x))))
  rows = len(x) // columns
  n, (height, width, channels) = rows * columns, x.shape[1:]
  tiles = np.clip(x[:n] / 2 + 0.5, 0, 1).reshape(rows, columns, height, width, channels)
  whole = tiles.swapaxes(1, 2).reshape(rows * height, columns * width, channels)
  return whole[..., 0] if channels == 1 else whole


def main(argv: list[str]) -> int:
  from distill_jax import trajectories

  parser = argparse.ArgumentParser(prog="python -m distill_jax.sample", allow_abbrev=False)
  parser.add_argument("--workdir", required=True, type=pathlib.Path)
  parser.add_argument("--out", type=pathlib.Path, help="a .png file for samples beside the data")
  parser.add_argument("--trajectories", type=pathlib.Path, help="a .png file for the way to them")
  parser.add_argument("--n", type=int, help="default: 64 images or 2000 points")
  args = parser.parse_args(argv)
  try:
    if args.n is not None and args.n < 1:
      raise ConfigError(f"--n must be at least 1, got {args.n}.")
    if not (args.out or args.trajectories):
      raise ConfigError("Nothing to draw: give --out FILE.png, --trajectories FILE.png or both.")
    way, real = samples(args.workdir, args.n or 0)
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  if args.out:
    panels: dict[str, Any] = {"data": real, "samples": way.states[-1]}
    draw(panels, args.out)
    print(f"{args.out}: {len(real)} samples beside the data")
  if args.trajectories:
    trajectories.draw({"": way}, real, args.trajectories)
    print(f"{args.trajectories}: the way of some of them from noise")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
