"""Cross-entropy on labels: how classifiers are trained, and what their distillation has to beat.

loss = - log softmax(logits)_y
"""

import jax.numpy as jnp
import optax

from distill_jax import method as method_lib
from distill_jax import optim
from distill_jax.method import Method, minimize


def make(config) -> Method:
  given, shape = config.models.student, tuple(config.data.shape)
  model = method_lib.load("models", given.name)
  tx = optim.make(config.optim, config.steps)

  def forward(params, x):
    """Logits, and parameters whose running statistics, if the model has any, have seen x."""
    if hasattr(model, "train_apply"):
      logits, _, params = model.train_apply(given, params, x)
      return logits, params
    return model.apply(given, params, x)[0], params

  def init(key, pretrained):
    params = pretrained.get("student") or model.init(given, shape, key)
    ema = optim.ema_init(config.ema, params)
    return dict(step=jnp.int32(0), student=params, opt=tx.init(params), ema=ema), {}

  def step(state, frozen, batch, key):
    def loss(params, batch, key):
      logits, _ = forward(params, batch["x"])
      nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
      right = jnp.argmax(logits, axis=-1) == batch["label"]
      count = jnp.float32(len(nats))
      return (jnp.sum(nats), count), dict(accuracy=(jnp.sum(right, dtype=jnp.float32), count))

    _, params = forward(state["student"], batch["x"])  # the loss's own pass, to the compiler
    params, opt, metrics = minimize(
      tx, loss, params, state["opt"], batch, key, microbatches=config.microbatches
    )
    ema = optim.ema_update(config.ema, state["ema"], params, state["step"])
    return dict(step=state["step"] + 1, student=params, opt=opt, ema=ema), metrics

  return Method(init, step)
