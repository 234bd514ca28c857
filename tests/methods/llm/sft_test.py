"""Cross-entropy by its definition."""

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import config as config_lib
from distill_jax import method as method_lib
from distill_jax.models import student as student_lib


def test_loss_is_the_negative_log_likelihood_of_what_the_mask_counts():
  config = config_lib.load("experiments/llm/sft.py:smoke", ("ema=(('constant', 0.5),)",))
  method = method_lib.load("methods", config.method.name).make(config)
  state, frozen = method.init(jax.random.key(0), {})
  assert frozen == {}  # no teacher is made up where none is named
  tokens = jax.random.randint(jax.random.key(1), (8, 17), 0, 256)
  mask = jax.random.bernoulli(jax.random.key(2), 0.5, (8, 16))
  new, metrics = jax.jit(method.step)(
    state, frozen, dict(tokens=tokens, mask=mask), jax.random.key(3)
  )
  model = student_lib.model(config, "student")
  logits = model.logits(state["student"], model.hidden(state["student"], tokens[:, :-1]))
  picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1)[..., 0]
  np.testing.assert_allclose(metrics["loss"][0], -np.sum(picked * mask), rtol=1e-5)
  assert metrics["loss"][1] == mask.sum()
  ema = jax.tree.map(lambda a, b: (a + b) / 2, state["student"], new["student"])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8),
    new["ema"]["constant_0.5"],
    ema,
  )
