"""DistiLLM: a skewed divergence, and text of the student's own as often as it helps, kept for
replay.

With probability phi (1 - step / steps) the student continues the prompts, and what it wrote goes
into a buffer; else, with probability phi in all, rows of the buffer are used again (while it is not
full the student writes instead); else the data's. phi starts at 0 and rises by `rise` each time
the loss on the data, averaged over `interval` steps, is not below the one at the last rise by
`tolerance`.

The paper reads that loss off a validation set. Rows of the data are new to the student when their
loss is taken, before the update, so their mean stands for it here; no second set is needed.

Paper: Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models
  (arXiv:2402.03898), section 3.2 and algorithm 1; constants from the authors' code.
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.losses import divergences
from distill_jax.method import Method
from distill_jax.models import student as student_lib


def make(config) -> Method:
  student, teacher = student_lib.model(config, "student"), student_lib.model(config, "teacher")
  tx = optim.make(config.optim, config.steps)
  divergence = divergences.named(**config.divergence.kind)
  method, rows = config.method, config.batch_size
  init_student = student_lib.init(config, tx)
  if method.capacity < rows:
    raise ValueError(f"method.capacity {method.capacity} is below batch_size {rows}")

  def init(key, pretrained):
    state, frozen = init_student(key, pretrained)
    length = config.data.seq_len
    replay = dict(
      tokens=jnp.zeros((method.capacity, length + 1), jnp.int32),
      mask=jnp.zeros((method.capacity, length), bool),
      written=jnp.int32(0),  # rows in all; the oldest are overwritten
    )
    schedule = dict(phi=jnp.float32(0), best=jnp.float32(jnp.inf), total=jnp.zeros(2))
    return dict(state, replay=replay, schedule=schedule), frozen

  def step(state, frozen, batch, key):
    coin_key, write_key, row_key, loss_key = jax.random.split(key, 4)
    replay, schedule = state["replay"], state["schedule"]
    coin, phi = jax.random.uniform(coin_key), schedule["phi"]
    full = replay["written"] >= method.capacity
    fresh = (coin < phi * (1 - state["step"] / config.steps)) | ((coin < phi) & ~full)
    again = (coin < phi) & ~fresh

    def own(batch):
      return student_lib.write(config, student, state["student"], batch, write_key)

    def stored(batch):
      filled = jnp.minimum(replay["written"], method.capacity)
      chosen = jax.random.randint(row_key, (rows,), 0, filled)
      return {name: replay[name][chosen] for name in ("tokens", "mask")}

    branch = jnp.where(fresh, 1, jnp.where(again, 2, 0))
    given = student_lib.given(config, batch)
    batch = jax.lax.switch(branch, (lambda batch: batch, own, stored), given)

    def loss(params, batch, key):
      total, _ = student_lib.divergence_sum(
        config, divergence, (student, params), (teacher, frozen["teacher"]), batch
      )
      return (total, jnp.sum(batch["mask"], dtype=jnp.float32)), {}

    state, metrics = student_lib.update(config, tx, loss, state, batch, loss_key)
    at = (replay["written"] + jnp.arange(rows)) % method.capacity
    kept = {n: jnp.where(fresh, replay[n].at[at].set(batch[n]), replay[n]) for n in batch}
    replay = dict(kept, written=replay["written"] + jnp.where(fresh, rows, 0))
    schedule = _adapt(method, schedule, metrics["loss"], branch == 0, state["step"])
    shares = dict(on_policy=fresh, replayed=again)
    metrics |= {name: (x.astype(jnp.float32), jnp.float32(1)) for name, x in shares.items()}
    metrics["phi"] = (phi, jnp.float32(1))
    return dict(state, replay=replay, schedule=schedule), metrics

  return Method(init, step)


def _adapt(method, schedule, loss, from_data, step):
  """Adds (sum, count) of a loss on the data; every `interval` steps compares their mean."""
  total = schedule["total"] + jnp.where(from_data, jnp.stack(loss), 0)
  mean = total[0] / jnp.maximum(total[1], 1)
  due = (step % method.interval == 0) & (total[1] > 0)
  first = jnp.isinf(schedule["best"])
  worse = due & (first | (mean >= schedule["best"] + method.tolerance))
  phi = jnp.where(worse & ~first, schedule["phi"] + method.rise, schedule["phi"])
  return dict(
    phi=jnp.minimum(phi, 1),
    best=jnp.where(worse, mean, schedule["best"]),
    total=jnp.where(due, 0, total),
  )
