"""A white-box distillation step against TRL's GKDTrainer: the same models, batches and optimiser.

  pip install -e '.[parity]' 'trl==1.16.0'
  python benchmarks/llm_step.py [--vocab 32000 128256] [--steps 10] [--json]

The pair is a Llama with 6 layers of width 256 (teacher) and one with 4 of 128 (student), 4 heads,
tied embeddings, random weights, saved once as Hugging Face folders that both sides load. Batches of
4 x 256 tokens, generalised JS with beta 0.5, float32, AdamW; TRL runs `trl.experimental.gkd` with
lmbda = 0, no checkpointing, two threads. Each side is a process of its own, so that peak memory (of
its whole life, imports and compilation included) is its own; the two take turns on the machine.

First 20 steps on 20 batches must give the same losses; only then steps are timed, in turns.
Last, the chunked divergence with its gradients is timed in turns with its matrix products alone.
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

BATCH, LENGTH, LR, PARITY_STEPS = 4, 256, 1e-3, 20
CHUNK = 128  # tokens whose logits exist at a time
TEACHER, STUDENT = dict(layers=6, width=256), dict(layers=4, width=128)


def save_models(folder: pathlib.Path, vocab: int) -> None:
  """Teacher and student as Hugging Face folders, with a tokenizer of `vocab` words."""
  import torch
  from tokenizers import Tokenizer, models
  from transformers import LlamaConfig, LlamaForCausalLM

  torch.manual_seed(0)
  for name, size in (("teacher", TEACHER), ("student", STUDENT)):
    config = LlamaConfig(
      vocab_size=vocab,
      hidden_size=size["width"],
      num_hidden_layers=size["layers"],
      num_attention_heads=4,
      num_key_value_heads=4,
      intermediate_size=size["width"] * 4,
      tie_word_embeddings=True,
      eos_token_id=0,
      bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder / name)
    words = {"<|endoftext|>": 0} | {str(i): i for i in range(1, vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / name / "tokenizer.json"))


def batch_of(step: int, vocab: int):
  import numpy as np

  return np.random.default_rng(step).integers(1, vocab, (BATCH, LENGTH)).astype(np.int32)


class Ours:
  """The step of experiments/llm/kd.py on the given folders."""

  def __init__(self, folder: pathlib.Path, vocab: int):
    import jax

    from distill_jax import config as config_lib
    from distill_jax import train
    from distill_jax.mesh import make_mesh

    self.jax, self.vocab = jax, vocab
    config = config_lib.load("experiments/llm/kd.py:divergence=generalized_js")
    config.pretrained.teacher, config.pretrained.student = (
      str(folder / name) for name in ("teacher", "student")
    )
    config.data.tokenizer = str(folder / "student")
    config.batch_size, config.data.seq_len = BATCH, LENGTH - 1
    config.divergence.chunk = CHUNK
    config.models.student.remat = "dots"  # on a CPU faster than keeping attention scores
    config.optim.schedule, config.optim.warmup, config.optim.lr = "constant", 0, LR
    config.optim.b2, config.optim.clip_norm = 0.999, 0.0
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    self.mesh = jax.set_mesh(mesh)
    self.mesh.__enter__()
    program = train.build(config, mesh)
    begin = time.perf_counter()
    self.step = program.step.lower(*program.abstract).compile()
    self.compile_seconds = time.perf_counter() - begin
    train.give_back()
    self.state, self.frozen = program.init(program.keys[0], program.pretrained)
    train.give_back()
    self.key = program.keys[1]

  def run(self, first: int, count: int) -> list[float]:
    """Losses of `count` steps from batch number `first` on."""
    np, losses = __import__("numpy"), []
    for i in range(first, first + count):
      tokens = batch_of(i, self.vocab)
      batch = dict(tokens=tokens, mask=np.ones((BATCH, LENGTH - 1), bool))
      self.state, metrics = self.step(self.state, self.frozen, batch, self.key)
      losses.append(metrics["loss"])
    return [float(total / count) for total, count in self.jax.device_get(losses)]


class Theirs:
  """`GKDTrainer.training_step` and the trainer's own optimiser."""

  def __init__(self, folder: pathlib.Path, vocab: int):
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    torch.set_num_threads(2)
    self.torch, self.vocab = torch, vocab
    tokenizer = PreTrainedTokenizerFast(
      tokenizer_file=str(folder / "student" / "tokenizer.json"),
      eos_token="<|endoftext|>",
      pad_token="<|endoftext|>",
    )
    arguments = GKDConfig(
      output_dir=str(folder / "trl"),
      per_device_train_batch_size=BATCH,
      learning_rate=LR,
      lr_scheduler_type="constant",
      lmbda=0.0,
      beta=0.5,
      bf16=False,
      gradient_checkpointing=False,
      use_cpu=True,
      report_to="none",
    )
    student, teacher = (
      AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
      for name in ("student", "teacher")
    )
    self.trainer = GKDTrainer(
      model=student,
      teacher_model=teacher,
      args=arguments,
      processing_class=tokenizer,
      train_dataset=Dataset.from_list([dict(messages=[])]),
      data_collator=lambda rows: rows,
    )
    self.trainer.model.train()
    self.trainer.create_optimizer()
    self.trainer.current_gradient_accumulation_steps = 1  # what `train()` sets
    self.compile_seconds = 0.0

  def run(self, first: int, count: int) -> list[float]:
    torch, losses = self.torch, []
    for i in range(first, first + count):
      ids = torch.from_numpy(batch_of(i, self.vocab)).long()
      inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
      losses.append(float(self.trainer.training_step(self.trainer.model, inputs)))
      self.trainer.optimizer.step()
      self.trainer.optimizer.zero_grad()
    return losses


def serve(side: str, folder: pathlib.Path, vocab: int) -> None:
  """A process of one side: each line of stdin, "first count", is answered by a line of JSON."""
  import resource

  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # what the libraries print is no answer
  runner = dict(ours=Ours, theirs=Theirs)[side](folder, vocab)
  print(json.dumps(dict(compile_seconds=runner.compile_seconds)), file=answers, flush=True)
  for line in sys.stdin:
    first, count = map(int, line.split())
    begin = time.perf_counter()
    losses = runner.run(first, count)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB, Linux counts KiB
    print(json.dumps(dict(losses=losses, seconds=seconds, peak=peak)), file=answers, flush=True)


def start(side: str, folder: pathlib.Path, vocab: int) -> tuple[subprocess.Popen, dict]:
  command = [sys.executable, __file__, "--serve", side, "--folder", str(folder)]
  process = subprocess.Popen(
    [*command, "--vocab", str(vocab)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    env=dict(os.environ, JAX_PLATFORMS="cpu", OMP_NUM_THREADS="2", HF_HUB_OFFLINE="1"),
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


def compare(vocab: int, steps: int) -> dict:
  """Parity, then speed and memory, of one vocabulary."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    save = [sys.executable, __file__, "--save", "--folder", name, "--vocab", str(vocab)]
    subprocess.run(save, check=True, stderr=subprocess.DEVNULL)
    sides = {side: start(side, folder, vocab) for side in ("theirs", "ours")}
    first = {s: ask(process, s, 0, PARITY_STEPS)["losses"] for s, (process, _) in sides.items()}
    parity = max(abs(a / b - 1) for a, b in zip(first["ours"], first["theirs"], strict=True))
    blocks: dict[str, list] = {side: [] for side in sides}
    if parity <= 1e-4:
      for block in range(steps):
        for side, (process, _) in sides.items():
          blocks[side].append(ask(process, side, PARITY_STEPS + block, 1))
    for process, _ in sides.values():
      process.stdin.close()
      process.wait()
  if parity > 1e-4:
    return dict(vocab=vocab, speed_ratio=None, memory_ratio=None, parity=parity)
  speed = {s: BATCH * LENGTH / statistics.median(b["seconds"] for b in blocks[s]) for s in sides}
  peak = {s: blocks[s][-1]["peak"] for s in sides}
  return dict(
    vocab=vocab,
    speed_ratio=speed["ours"] / speed["theirs"],
    memory_ratio=peak["theirs"] / peak["ours"],
    parity=parity,
    ours_tokens_per_s=speed["ours"],
    theirs_tokens_per_s=speed["theirs"],
    ours_peak_gib=peak["ours"],
    theirs_peak_gib=peak["theirs"],
    compile_seconds=sides["ours"][1]["compile_seconds"],
  )


def op_share(vocab: int) -> dict:
  """Milliseconds of the fused divergence with gradients, and of its matrix products alone."""
  import jax
  import jax.numpy as jnp

  from distill_jax.losses import divergences
  from distill_jax.losses.linear_divergence import linear_divergence_sum

  tokens = BATCH * LENGTH
  keys = jax.random.split(jax.random.key(0), 4)
  widths = STUDENT["width"], TEACHER["width"]
  (s, t), (w, v) = (
    [jax.random.normal(k, (tokens, d)) for k, d in zip(keys[:2], widths, strict=True)],
    [jax.random.normal(k, (d, vocab)) * 0.1 for k, d in zip(keys[2:], widths, strict=True)],
  )

  @jax.jit
  def fused(s, w, t, v):
    def loss(s, w):
      js = divergences.generalized_js
      return linear_divergence_sum(js, s[None], w, t[None], v, chunk=CHUNK)[0]

    return jax.grad(loss, argnums=(0, 1))(s, w)

  @jax.jit
  def products(s, w, t, v):
    def step(head_grad, i):
      a, b = (jax.lax.dynamic_slice_in_dim(x, i * CHUNK, CHUNK) for x in (s, t))
      slope = a @ w
      return head_grad + a.T @ slope, (slope @ w.T, jnp.sum(b @ v, axis=-1))

    return jax.lax.scan(step, jnp.zeros_like(w), jnp.arange(tokens // CHUNK))

  times: dict = dict(fused=[], products=[])
  for i in range(12):
    for name, f in (("fused", fused), ("products", products)):
      begin = time.perf_counter()
      jax.block_until_ready(f(s, w, t, v))
      times[name] += (
        [time.perf_counter() - begin] if i > 1 else []
      )  # the first two compile and warm
  return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--vocab", type=int, nargs="+", default=[32_000, 128_256])
  parser.add_argument("--steps", type=int, default=10, help="timed steps of each side")
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--serve", choices=("ours", "theirs"), help=argparse.SUPPRESS)
  parser.add_argument("--save", action="store_true", help=argparse.SUPPRESS)
  parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.save:
    return save_models(args.folder, args.vocab[0])
  if args.serve:
    return serve(args.serve, args.folder, args.vocab[0])
  cells = []
  for vocab in args.vocab:
    cell = compare(vocab, args.steps)
    cells.append(cell)
    print(f"vocabulary {vocab:,}: losses of {PARITY_STEPS} steps differ by {cell['parity']:.1e}")
    if cell["speed_ratio"] is None:
      print("  more than 1e-4: not timed")
      continue
    for side in ("theirs", "ours"):
      rate, peak = cell[f"{side}_tokens_per_s"], cell[f"{side}_peak_gib"]
      print(f"  {side:7} {rate:8,.0f} tokens/s  {peak:6.2f} GiB peak")
    print(f"  {cell['speed_ratio']:.1f} times the speed, 1/{cell['memory_ratio']:.1f} the memory")
    share = op_share(vocab)
    cell["fused_ms"], cell["products_ms"] = share["fused"], share["products"]
    print(f"  fused op {share['fused']:.0f} ms, its products alone {share['products']:.0f} ms")
  if args.json:
    print(json.dumps(dict(cells=cells)))


if __name__ == "__main__":
  main()
