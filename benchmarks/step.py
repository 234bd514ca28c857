"""The train step against the machine's own matrix products.

  python benchmarks/step.py [--width 512] [--layers 4] [--json]

Times a cross-entropy and a distillation step (teacher and student of the same shape) of a float32
transformer, and in the same run, in turns, a product of two square matrices. A step's share is its
matrix-product FLOPs, counted from the shapes, over its time, over the rate of that product. Before
any timing the fused loss and its gradient are compared with the plain loss on whole logits.
"""

import argparse
import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import config as config_lib
from distill_jax import metrics, train
from distill_jax.losses import divergences
from distill_jax.mesh import make_mesh, put_batch
from distill_jax.models import student as student_lib


def experiment(args, name: str):
  """The config of a step of the given size, on random weights."""
  config = config_lib.load(f"experiments/llm/{name}.py")
  config.pretrained.teacher = config.pretrained.student = ""
  config.batch_size, config.data.seq_len = args.batch, args.length
  for model in (config.models.teacher, config.models.student):
    model.layers, model.width, model.vocab_size = args.layers, args.width, args.vocab
    model.heads = model.kv_heads = args.width // 64
    model.head_dim, model.mlp_width = 64, args.width * 11 // 4
  return config


def forward_flops(args) -> float:
  """Multiply-adds times two of one forward pass: projections, causal attention in full, and the
  head."""
  tokens, d, f = args.batch * args.length, args.width, args.width * 11 // 4
  layer = 2 * tokens * (4 * d * d + 3 * d * f) + 4 * tokens * args.length * d
  return args.layers * layer + 2 * tokens * d * args.vocab


def check(config, program, step, batch) -> float:
  """Largest relative difference between the fused loss and gradient norm of a step and the plain
  ones."""
  student = student_lib.model(config, "student")
  teacher = student_lib.model(config, "teacher")
  state, frozen = program.init(program.keys[0], program.pretrained)
  inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]

  @jax.jit
  @jax.value_and_grad
  def plain(params):
    logits = student.logits(params, student.hidden(params, inputs))
    if config.method.name == "llm.sft":
      log_q = jax.nn.log_softmax(logits)
      return -jnp.mean(jnp.take_along_axis(log_q, targets[..., None], -1))
    target = teacher.logits(frozen["teacher"], teacher.hidden(frozen["teacher"], inputs))
    return jnp.mean(divergences.forward_kl(logits, target))

  loss, grads = plain(state["student"])
  expected = np.array([loss, jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))])
  _, measured = step(state, frozen, batch, program.keys[1])
  ours = np.array([measured["loss"][0] / measured["loss"][1], measured["grad_norm"][0]])
  return float(np.max(np.abs(ours / expected - 1)))


def seconds(call) -> float:
  begun = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - begun


def measure(args, name: str) -> dict:
  config = experiment(args, name)
  mesh = make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    program = train.build(config, mesh)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, args.vocab, (args.batch, args.length + 1), dtype=np.int32)
    batch = put_batch(dict(tokens=tokens, mask=np.ones((args.batch, args.length), bool)), mesh)
    begun = time.perf_counter()
    step = program.step.lower(*program.abstract).compile()
    compile_seconds = time.perf_counter() - begun
    difference = check(config, program, step, batch)
    if difference > 1e-4:
      sys.exit(
        f"{name}: the step differs from the plain loss by {difference:.1e}; nothing is timed."
      )
    state, frozen = program.init(program.keys[0], program.pretrained)
    matrix = jnp.ones((args.matrix, args.matrix), jnp.float32)
    product = jax.jit(jnp.matmul)
    times, products = [], []
    for i in range(args.steps + 3):
      rate = seconds(lambda: product(matrix, matrix))

      def once():
        nonlocal state
        state, out = step(state, frozen, batch, program.keys[1])
        return out

      took = seconds(once)
      if i >= 3:  # warm
        times.append(took)
        products.append(rate)
  passes = 3 if name == "sft" else 4  # forward and twice that backward; the teacher's forward
  flops = passes * forward_flops(args)
  machine = 2 * args.matrix**3 / statistics.median(products)
  took = statistics.median(times)
  return dict(
    step=name,
    parity=difference,
    compile_seconds=compile_seconds,
    step_seconds=took,
    tokens_per_s=args.batch * args.length / took,
    gflops=flops / took / 1e9,
    matmul_gflops=machine / 1e9,
    share=flops / took / machine,
    temporary_bytes=step.memory_analysis().temp_size_in_bytes,
    **metrics.memory(),
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--layers", type=int, default=4)
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--vocab", type=int, default=2048)
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--length", type=int, default=256)
  parser.add_argument("--matrix", type=int, default=2048, help="side of the product's matrices")
  parser.add_argument("--steps", type=int, default=30)
  parser.add_argument("--json", action="store_true", help="one line of JSON at the end")
  args = parser.parse_args()
  results = [measure(args, name) for name in ("sft", "kd")]
  print(f"{args.layers} layers of width {args.width}, vocabulary {args.vocab}, ", end="")
  print(f"{args.batch} x {args.length} tokens; median of {args.steps} steps")
  for r in results:
    print(
      f"{r['step']:4} {r['step_seconds']:.3f} s  {r['tokens_per_s']:,.0f} tokens/s  "
      f"{r['gflops']:.0f} GFLOP/s of {r['matmul_gflops']:.0f}: {r['share']:.0%}  "
      f"compiled in {r['compile_seconds']:.1f} s, temporaries {r['temporary_bytes'] / 1e6:.0f} MB, "
      f"parity {r['parity']:.0e}"
    )
  if args.json:
    print(json.dumps(dict(cells=results)))


if __name__ == "__main__":
  main()
