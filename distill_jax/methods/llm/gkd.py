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
from distill_jax.sampling import sample


def make(config) -> Method:
  student, teacher = student_lib.model(config, "student"), student_lib.model(config, "teacher")
  tx = optim.make(config.optim, config.steps)
  divergence = divergences.named(**config.divergence.kind)
  prompt = config.method.prompt

  def step(state, frozen, batch, key):
    coin_key, sample_key, loss_key = jax.random.split(key, 3)

    def own(tokens, mask):
      written = sample(
        student,
        state["student"],
        tokens[:, :prompt],
        sample_key,
        new_tokens=tokens.shape[1] - prompt,
        temperature=config.method.temperature,
      )
      return written.tokens, written.generated[:, 1:]

    def given(tokens, mask):
      return tokens, mask & (jnp.arange(mask.shape[1]) >= prompt - 1)

    on_policy = jax.random.uniform(coin_key) < config.method.on_policy
    tokens, mask = jax.lax.cond(on_policy, own, given, batch["tokens"], batch["mask"])

    def loss(params, batch, key):
      total, _ = student_lib.divergence_sum(
        config, divergence, (student, params), (teacher, frozen["teacher"]), batch
      )
      return (total, jnp.sum(batch["mask"], dtype=jnp.float32)), {}

    state, metrics = student_lib.update(
      config, tx, loss, state, dict(tokens=tokens, mask=mask), loss_key
    )
    return state, dict(metrics, on_policy=(on_policy.astype(jnp.float32), jnp.float32(1)))

  return Method(student_lib.init(config, tx), step)
