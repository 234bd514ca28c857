"""How well a classifier knows images that training never saw.

  accuracy       the share of images whose most probable class is theirs
  cross_entropy  nats
  ece            expected calibration error: how far confidence is from accuracy

Of several seeds in one run each value is NAME@SEED. The student's first moving average is measured,
where it has one.
"""

import jax
import jax.numpy as jnp
import optax

from distill_jax import method as method_lib

CHUNK = 256  # images at a time


def make(config):
  """Reads `eval_samples` held-out images once; `evaluate(state, frozen)` looks at the student."""
  images = method_lib.load("data", config.data.name).validation(config, config.eval_samples)
  given = config.models.student
  model = method_lib.load("models", given.name)

  @jax.jit
  def measure(params):
    one = lambda x: model.apply(given, params, x[None])[0][0]  # noqa: E731
    logits = jax.lax.map(one, images["x"], batch_size=CHUNK)
    label = jnp.asarray(images["label"])
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return dict(
      accuracy=jnp.mean(jnp.argmax(logits, axis=-1) == label),
      cross_entropy=jnp.mean(nats),
      ece=expected_calibration_error(jax.nn.softmax(logits), label),
    )

  def evaluate(state, frozen):
    params = next(iter(state["ema"].values()), state["student"])
    if config.seeds == 1:
      return {name: float(v) for name, v in measure(params).items()}
    each = [measure(jax.tree.map(lambda x: x[i], params)) for i in range(config.seeds)]
    return {f"{name}@{i}": float(v) for i, values in enumerate(each) for name, v in values.items()}

  return evaluate


def expected_calibration_error(
  probabilities: jax.Array, label: jax.Array, *, bins: int = 15
) -> jax.Array:
  """sum_b (n_b / n) |accuracy_b - confidence_b| over bins of equal width of the confidence.

  Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks (arXiv:1706.04599), eq. 3;
  bins are (b / bins, (b + 1) / bins].

  Args:
    probabilities: [N, classes].
    label: int [N].
    bins: how many.

  Returns:
    A scalar in [0, 1].
  """
  confidence = jnp.max(probabilities, axis=-1)
  right = jnp.argmax(probabilities, axis=-1) == label
  index = jnp.clip(jnp.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  gaps = jnp.zeros(bins, probabilities.dtype).at[index].add(right - confidence)
  return jnp.sum(jnp.abs(gaps)) / len(label)
