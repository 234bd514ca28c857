"""White-box distillation on given text: a divergence between next-token distributions.

  loss = alpha T^2 D(p_T, q_T) + (1 - alpha) CE(y, q)
  p_T = softmax(teacher logits / T),   q_T = softmax(student logits / T)

D is any function of losses/divergences.py; forward KL is Hinton's, reverse KL looks for modes.

Paper: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network (arXiv:1503.02531),
  section 2.
Paper: Gu, Dong, Wei, Huang, MiniLLM: Knowledge Distillation of Large Language Models
  (arXiv:2306.08543), eq. 1, the reverse KL of each token on given text.
Paper: Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models
  (arXiv:2402.03898), eq. 5 and 6, the skewed divergences.
Paper: Wen et al., f-Divergence Minimization for Sequence-Level Knowledge Distillation
  (arXiv:2307.15190), the total variation of each token.
"""

import jax.numpy as jnp

from distill_jax import optim
from distill_jax.losses import divergences
from distill_jax.losses.log_probs import token_log_probs
from distill_jax.method import Method
from distill_jax.models import student as student_lib


def make(config) -> Method:
  student, teacher = student_lib.model(config, "student"), student_lib.model(config, "teacher")
  tx = optim.make(config.optim, config.steps)
  divergence = divergences.named(**config.divergence.kind)
  alpha, temperature = config.method.alpha, config.divergence.kind.temperature

  def of_position(student_logits, teacher_logits, target):
    soft = temperature**2 * divergence(student_logits, teacher_logits)
    if alpha == 1:
      return soft
    return alpha * soft - (1 - alpha) * token_log_probs(student_logits, target)

  def step(state, frozen, batch, key):
    def loss(params, batch, key):
      total, _ = student_lib.divergence_sum(
        config,
        of_position,
        (student, params),
        (teacher, frozen["teacher"]),
        batch,
        batch["tokens"][:, 1:],
      )
      return (total, jnp.sum(batch["mask"], dtype=jnp.float32)), {}

    return student_lib.update(config, tx, loss, state, batch, key)

  return Method(student_lib.init(config, tx), step)
