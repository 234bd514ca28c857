"""What the teacher thinks of text that the student writes: what on-policy methods reduce.

reverse_kl  KL(student || teacher) at temperature 1, nats, a mean over the tokens that the student
            sampled after prompts of `method.prompt` tokens of held-out text. Summed over a
            continuation it estimates the reverse KL of whole sequences.
"""

import jax
import jax.numpy as jnp

from distill_jax.data import text
from distill_jax.losses import divergences
from distill_jax.losses.linear_divergence import linear_divergence
from distill_jax.mesh import put_batch
from distill_jax.metrics import Meter
from distill_jax.models import student as student_lib
from distill_jax.sampling import sample


def make(config):
  """Continues `eval_batches` batches of prompts, with the same draws at every evaluation."""
  mesh = jax.sharding.get_mesh()
  batches = [put_batch(batch, mesh) for batch in text.validation(config)]
  student, teacher = (student_lib.model(config, name) for name in ("student", "teacher"))
  prompt = config.method.prompt

  @jax.jit
  def sums(params, frozen, batch):
    prompts, length = batch["tokens"][:, :prompt], config.data.seq_len + 1
    written = sample(student, params, prompts, jax.random.key(0), new_tokens=length - prompt)
    inputs, where = written.tokens[:, :-1], written.generated[:, 1:]
    kl = linear_divergence(
      divergences.reverse_kl,
      student.hidden(params, inputs),
      student.head(params),
      teacher.hidden(frozen["teacher"], inputs),
      teacher.head(frozen["teacher"]),
      where=where,
      chunk=config.divergence.chunk,
      student=student_lib.head(student),
      teacher=student_lib.head(teacher),
    )
    return dict(reverse_kl=(jnp.sum(kl), jnp.sum(where, dtype=jnp.float32)))

  def evaluate(state, frozen):
    meter = Meter()
    if "teacher" in frozen:
      for metrics in [sums(state["student"], frozen, batch) for batch in batches]:
        meter.add(jax.device_get(metrics))
    return meter.means()

  return evaluate
