"""The distilled set of a run, out of its latest checkpoint."""

import json
import pathlib

import jax
import numpy as np

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax import train
from distill_jax.checkpoint import Checkpoints
from distill_jax.config import ConfigError
from distill_jax.distilled.artifact import DistilledDataset
from distill_jax.evals import distilled
from distill_jax.mesh import make_mesh


def read(workdir: pathlib.Path) -> DistilledDataset:
  """The set of a run's latest checkpoint, as its eval trains on it; of the first seed of several.

  Raises:
    ConfigError: there is no run or checkpoint, or it is not one of this family.
  """
  config = config_lib.load_saved(workdir)
  if "protocol" not in config:
    raise ConfigError(f"{workdir} is a run of {config.method.name}, which distils no dataset.")
  data = method_lib.load("data", config.data.name)
  mesh = make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    program = train.build(config, mesh)
    batches = iter(data.make(config))
    checkpoints = workdir / "checkpoints"
    with Checkpoints(checkpoints, every=config.save_every, keep=config.keep) as saved:
      state = saved.restore(program.abstract[0], batches)
  if state is None:
    raise ConfigError(f"{workdir} has no usable checkpoint.")
  student = jax.device_get(next(iter(state.get("ema", {}).values()), state["student"]))
  if config.seeds > 1:
    student = jax.tree.map(lambda x: x[0], student)
  images, labels, kind, _ = distilled.as_trained(config, student, program.pretrained["real"])
  versions = workdir / "versions.json"
  return DistilledDataset(
    np.asarray(images, np.float32),
    np.asarray(labels),
    kind,
    float(np.exp(student["log_lr"])) if "log_lr" in student else None,
    data.fitted(config),
    json.loads(config.protocol.to_json_best_effort()),
    dict(
      config=json.loads(config.to_json_best_effort()),
      versions=json.loads(versions.read_text()) if versions.is_file() else {},
      step=int(state["step"]),
    ),
  )
