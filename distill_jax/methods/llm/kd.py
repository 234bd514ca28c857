"""White-box distillation on given text: a divergence between next-token distributions.

  loss = a T^2 sum_i w_i D(p_i, q) + (1 - a) CE(y, q) + b sum_i w_i |z_i - z|^2 / V
  p_i = softmax(z_i / T) of teacher i,   q = softmax(z / T) of the student,   sum_i w_i = 1

D is any function of `divergences.named`; forward KL is Hinton's, reverse KL looks for modes. With
several teachers the gradient of forward KL is that towards the mixture of them. a and T go in
straight lines from the first step to the last; b is 0 unless set.

Paper: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network (arXiv:1503.02531),
  section 2.
Paper: Gu, Dong, Wei, Huang, MiniLLM: Knowledge Distillation of Large Language Models
  (arXiv:2306.08543), eq. 1, the reverse KL of each token on given text.
Paper: Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models
  (arXiv:2402.03898), eq. 5 and 6, the skewed divergences.
Paper: Wen et al., f-Divergence Minimization for Sequence-Level Knowledge Distillation
  (arXiv:2307.15190), the total variation of each token.
Paper: Wu et al., Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large
  Language Models (arXiv:2404.02657), adaptive KL.
Paper: Kim et al., Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge
  Distillation (arXiv:2105.08919), eq. 3, the logits' squared error.
"""

import jax.numpy as jnp

from distill_jax import optim
from distill_jax.losses import divergences
from distill_jax.losses.log_probs import token_log_probs
from distill_jax.method import Method
from distill_jax.models import student as student_lib


def make(config) -> Method:
  student = student_lib.model(config, "student")
  weights = dict(config.method.teachers)
  if abs(sum(weights.values()) - 1) > 1e-6:
    raise ValueError(f"method.teachers: the weights must add up to 1, got {weights}")
  teachers = {name: student_lib.model(config, name) for name in weights}
  tx = optim.make(config.optim, config.steps)
  divergence = divergences.named(**config.divergence.kind)
  alpha_of = _line(config.method.alpha, config.method.alpha_end, config.steps)
  temperature_of = _line(
    config.divergence.kind.temperature, config.divergence.temperature_end, config.steps
  )
  only_soft = config.method.alpha == 1 and config.method.alpha_end in (None, 1)

  def step(state, frozen, batch, key):
    alpha, temperature = alpha_of(state["step"]), temperature_of(state["step"])

    def of_position(student_logits, teacher_logits, target):
      value = temperature**2 * divergence(student_logits, teacher_logits, temperature=temperature)
      if not only_soft:
        value = alpha * value - (1 - alpha) * token_log_probs(student_logits, target)
      if config.method.logits:
        value += config.method.logits * divergences.logit_mse(student_logits, teacher_logits)
      return value

    def loss(params, batch, key):
      total = jnp.float32(0)
      for name, weight in weights.items():
        part, _ = student_lib.divergence_sum(
          config,
          of_position,
          (student, params),
          (teachers[name], frozen[name]),
          batch,
          batch["tokens"][:, 1:],
        )
        total += weight * part
      return (total, jnp.sum(batch["mask"], dtype=jnp.float32)), {}

    return student_lib.update(config, tx, loss, state, batch, key)

  others = tuple(name for name in weights if name != "teacher")
  return Method(student_lib.init(config, tx, others=others), step)


def _line(start: float, end: float | None, steps: int):
  """step -> the value on the straight line from `start` to `end`, or always `start`."""
  if end is None:
    return lambda step: start
  return lambda step: start + (end - start) * step / max(steps - 1, 1)
