"""Relabelling a set by a ResNet-18 at 224 x 224, compiled for 16 v5e chips; no chip is needed.

  pip install -e '.[tpu]'
  python benchmarks/relabel_plan.py [--topology v5e:4x4] [--batch 2048]

The program that distill_jax/relabel.py runs for each batch: crops, flips and cutmix of images and
their partners, the network in bfloat16, the 32 largest of 1,000 log-probabilities. FLOPs and HBM
traffic are those of one chip; the time is the roofline's, not measured. Reading images on the host
is not in it.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from distill_jax import plan
from distill_jax.data import soft_labels
from distill_jax.models import resnet

CLASSES, PER_CLASS, EPOCHS, SHAPE = 1000, 200, 300, (224, 224, 3)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--topology", default="v5e:4x4")
  parser.add_argument("--batch", type=int, default=2048, help="images, over all chips")
  args = parser.parse_args()
  images = np.broadcast_to(np.float32(0), (CLASSES * PER_CLASS, 1, 1, 1))  # for their number
  fields = soft_labels.describe(images, classes=CLASSES, epochs=EPOCHS)
  given = resnet.default_config()
  given.update(dict(num_classes=CLASSES, dtype="bfloat16"))
  mesh = Mesh(np.array(plan.slice_devices(args.topology)), "batch")

  def array(shape, *partition, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, jax.P(*partition)))

  params = jax.eval_shape(lambda key: resnet.init(given, SHAPE, key), jax.random.key(0))
  arguments = dict(
    teacher=jax.tree.map(lambda x: array(x.shape), params),
    images=array((args.batch, *SHAPE), "batch"),
    partners=array((args.batch, *SHAPE), "batch"),
    epoch=array((), dtype=jnp.int32),
    ids=array((args.batch,), "batch", dtype=jnp.int32),
  )
  look = soft_labels.labeller(fields, lambda p, x: resnet.apply(given, p, x)[0], mesh)
  report = plan.plan(look, arguments, args.topology, mesh.size)
  plan.show(dict(report, config="relabel", mesh=f"batch {mesh.size}"))
  if report["fits"]:
    views = CLASSES * PER_CLASS * EPOCHS
    seconds = report["estimate"]["step_seconds"] * views / args.batch
    print(f"{views:,} views of {CLASSES * PER_CLASS:,} images: {seconds:.0f} s at that bound")


if __name__ == "__main__":
  main()
