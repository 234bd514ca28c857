"""Pruning with distillation: random real images, and what a teacher of all of them says of each.

label_i = teacher(x_i) / temperature

The teacher is `config.pretrained.teacher`, or a network that `init` trains on the whole real set by
the protocol of the evals, for `epochs`. Steps change nothing: networks learn from the soft labels
in the eval (config.label_kind "logits": cross-entropy against softmax(label)).

Without the paper's share of hard labels; the teacher sees the image itself once, not each augmented
view of it.

Paper: Ben-Baruch et al., Distilling the Knowledge in Data Pruning (arXiv:2403.07854), section 3.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from distill_jax import method as method_lib
from distill_jax.distilled import protocol as protocol_lib
from distill_jax.distilled import synthetic
from distill_jax.method import Method


def make(config) -> Method:
  given = config.models.teacher
  model = method_lib.load("models", given.name)
  longer = dict(epochs=config.method.epochs, most_steps=0)
  protocol = ConfigDict(dict(config.protocol.items(), **longer))

  def init(key, pretrained):
    real = pretrained["real"]
    of_rows, of_teacher = jax.random.split(key)
    params = pretrained.get("teacher")
    if params is None:
      params = protocol_lib.train(protocol, given, real.x, real.label, of_teacher)
    rows = synthetic.random_rows(of_rows, real, config.per_class).astype(jnp.int32)
    logits, _ = model.apply(given, params, real.x[rows])
    student = dict(rows=rows, labels=logits / config.method.temperature)
    return dict(step=jnp.int32(0), student=student), dict(real=real)

  def step(state, frozen, batch, key):
    return dict(state, step=state["step"] + 1), {}

  return Method(init, step)
