"""The fused divergence against the plain one, compiled for 8 v5e chips; no chip is needed.

  pip install -e '.[tpu]'
  python benchmarks/linear_divergence_plan.py [--topology v5e:2x4] [--tensor 8 2] [--json]

8,192 tokens, hidden states of 4,096 (teacher) and 2,048 (student) in bfloat16, vocabulary 128,256;
the teacher's head is bfloat16, the student's a float32 master copy. Both programs return the sum
and the gradients of the student's hidden states and head (that they are equal is tested in
tests/losses/linear_divergence_test.py). They lie on a mesh of fsdp x tensor: tokens over fsdp,
vocabulary over tensor. FLOPs, HBM traffic and collectives are those of one chip, read from the
optimised program with each loop counted as often as it runs; temporary memory is what the compiler
says.
"""

import argparse
import json

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from distill_jax import plan
from distill_jax.losses import divergences
from distill_jax.losses.linear_divergence import linear_divergence_sum

TOKENS, LENGTH, STUDENT, TEACHER, VOCABULARY = 8192, 1024, 2048, 4096, 128_256
KINDS = ("forward_kl", "reverse_kl", "generalized_js")


def programs(kind: str, chunk: int):
  """The two losses as functions of (student hidden, head, teacher hidden, head)."""
  divergence = divergences.named(kind)

  def fused(hidden, head, teacher_hidden, teacher_head):
    arrays = hidden, head, teacher_hidden, teacher_head
    return linear_divergence_sum(divergence, *arrays, chunk=chunk)[0]

  def plain(hidden, head, teacher_hidden, teacher_head):
    student, teacher = (
      jnp.matmul(h, w.astype(h.dtype), preferred_element_type=jnp.float32)
      for h, w in ((hidden, head), (teacher_hidden, teacher_head))
    )
    return jnp.sum(divergence(student, teacher))

  return dict(fused=fused, plain=plain)


def compiled(loss, topology: str, tensor: int) -> dict:
  devices = plan.slice_devices(topology)
  sizes = (1, len(devices) // tensor, tensor)
  names = ("data", "fsdp", "tensor")
  mesh = jax.make_mesh(sizes, names, (jax.sharding.AxisType.Auto,) * 3, devices=devices)

  def array(shape, *partition, dtype=jnp.bfloat16):
    layout = NamedSharding(mesh, jax.P(*partition))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=layout)

  rows = TOKENS // LENGTH
  arguments = dict(
    hidden=array((rows, LENGTH, STUDENT), "fsdp"),
    head=array((STUDENT, VOCABULARY), None, "tensor", dtype=jnp.float32),
    teacher_hidden=array((rows, LENGTH, TEACHER), "fsdp"),
    teacher_head=array((TEACHER, VOCABULARY), None, "tensor"),
  )
  layouts = tuple(x.sharding for x in list(arguments.values())[:2])
  with jax.set_mesh(mesh):
    step = jax.jit(
      jax.value_and_grad(loss, argnums=(0, 1)),
      out_shardings=(NamedSharding(mesh, jax.P()), layouts),
    )
    return plan.plan(step, arguments, topology, len(devices))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--topology", default="v5e:2x4")
  parser.add_argument("--tensor", type=int, nargs="+", default=[8, 2])
  parser.add_argument("--chunk", type=int, default=512, help="tokens over all chips")
  parser.add_argument("--kinds", nargs="+", default=KINDS)
  parser.add_argument("--json", action="store_true")
  args = parser.parse_args()
  cells = []
  print("| divergence | tensor | program | temporaries, MiB | TFLOP | HBM, GB |")
  print("| --- | ---: | --- | ---: | ---: | ---: |")
  for tensor in args.tensor:
    for kind in args.kinds:
      for name, loss in programs(kind, args.chunk).items():
        report = compiled(loss, args.topology, tensor)
        work, memory = report["work"], report["memory"]["temporaries"]
        cell = dict(kind=kind, tensor=tensor, program=name, temporaries=memory)
        cells.append(cell | dict(flops=work["flops"], hbm_bytes=work["hbm_bytes"]))
        figures = f"{memory / 2**20:,.0f} | {work['flops'] / 1e12:.2f}"
        print(f"| {kind} | {tensor} | {name} | {figures} | {work['hbm_bytes'] / 1e9:.2f} |")
  if args.json:
    print(json.dumps(dict(cells=cells)))


if __name__ == "__main__":
  main()
