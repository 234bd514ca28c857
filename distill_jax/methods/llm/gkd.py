"""On-policy distillation: the student writes, the teacher grades each token of what was written.

  with probability lambda   y ~ student(. | prompt)         the student's own continuation, no
  gradient through sampling
  else                      y = the data's continuation
  loss = mean over the continuation of D_beta(p(. | y_<t), q(. | y_<t))

Sampling runs inside the compiled step, with the parameters that the step then updates.

Paper: Agarwal et al., On-Policy Distillation of Language Models: Learning from Self-Generated
  Mistakes (arXiv:2306.13649), algorithm 1.
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

  def step(state, frozen, batch, key):
    coin_key, sample_key, loss_key = jax.random.split(key, 3)

    def own(batch):
      return student_lib.write(config, student, state["student"], batch, sample_key)

    on_policy = jax.random.uniform(coin_key) < config.method.on_policy
    given = student_lib.given(config, batch)
    batch = jax.lax.cond(on_policy, own, lambda batch: batch, given)

    def loss(params, batch, key):
      total, _ = student_lib.divergence_sum(
        config, divergence, (student, params), (teacher, frozen["teacher"]), batch
      )
      return (total, jnp.sum(batch["mask"], dtype=jnp.float32)), {}

    state, metrics = student_lib.update(config, tx, loss, state, batch, loss_key)
    return state, dict(metrics, on_policy=(on_policy.astype(jnp.float32), jnp.float32(1)))

  return Method(student_lib.init(config, tx), step)
