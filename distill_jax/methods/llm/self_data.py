"""Self-data distillation: a pruned model learns the text as the model it was cut from would put it.

  y' ~ teacher(. | prompt y prompt)       the whole model has seen the true continuation y
  loss = - sum_t log q(y'_t | prompt, y'_<t)

The student is the teacher after pruning (distill_jax/prune.py). What it learns stays inside the
teacher's own distribution, so that it forgets less than on the data itself. The teacher reads its
instruction from the paper's template there; a base model has none and reads the text once, then
writes it again after the prompt. The paper keeps y instead of y' where a final answer is wrong;
free text has no such answer and y' is always kept.

Paper: Thangarasa et al., Self-Data Distillation for Recovering Quality in Pruned Large Language
  Models (arXiv:2410.09982), eq. 3 and 4.
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.method import Method
from distill_jax.models import student as student_lib
from distill_jax.sampling import sample


def make(config) -> Method:
  student, teacher = student_lib.model(config, "student"), student_lib.model(config, "teacher")
  tx = optim.make(config.optim, config.steps)
  prompt = config.method.prompt

  def step(state, frozen, batch, key):
    write_key, loss_key = jax.random.split(key)
    tokens = student_lib.given(config, batch)["tokens"]
    shown = jnp.concatenate([tokens, tokens[:, :prompt]], axis=1)  # the text, then its beginning
    written = sample(
      teacher,
      frozen["teacher"],
      shown,
      write_key,
      new_tokens=tokens.shape[1] - prompt,
      temperature=config.method.temperature,
    )
    batch = dict(
      tokens=written.tokens[:, tokens.shape[1] :],
      mask=written.generated[:, tokens.shape[1] + 1 :],
    )

    def loss(params, batch, key):
      total, _ = student_lib.cross_entropy_sum(config, student, params, batch)
      return (total, jnp.sum(batch["mask"], dtype=jnp.float32)), {}

    return student_lib.update(config, tx, loss, state, batch, loss_key)

  return Method(student_lib.init(config, tx), step)
