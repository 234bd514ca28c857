"""Distillation on a mixture of domains that follows where the student is behind its teacher.

  every `interval` steps, from perplexities of both models on held-out text of each domain i:
    r_0[i]     = softmax_i(ppl_S[i] / ppl_T[i])                                        eq. 1
    psi[i]     = r_t[i] exp(ppl_S[i] / ppl_T[i])
    r_{t+1}[i] = smoothing psi[i] / sum_j psi[j] + (1 - smoothing) / N                 eq. 2
  loss = CE(y, q) + gamma T^2 KL(p_T || q_T) on rows drawn from domain i with probability r_t[i]

In the first interval rows are drawn in proportion to the domains' sizes, as in algorithm 1. The
paper samples the data of an interval at once; here the batch holds a row of every domain for each
of its places (data/domains.py), and the step draws the domain of each, so that r, which is state,
decides and a resumed run draws the same. Of a domain's rows a share is therefore passed over. The
paper's loss has no T^2; at its T = 1 that is the same. Any divergence may stand in for KL. The
metrics domain_0, domain_1 ... are the probabilities, in the order of data/domains.py.

Paper: Liu et al., DDK: Distilling Domain Knowledge for Efficient Large Language Models
  (arXiv:2407.16154), eq. 1 to 3 and algorithm 1.
"""

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import optim
from distill_jax.data import domains
from distill_jax.losses import divergences
from distill_jax.losses.linear_divergence import linear_cross_entropy
from distill_jax.losses.log_probs import token_log_probs
from distill_jax.method import Method
from distill_jax.models import student as student_lib


def make(config) -> Method:
  student, teacher = student_lib.model(config, "student"), student_lib.model(config, "teacher")
  tx = optim.make(config.optim, config.steps)
  divergence = divergences.named(**config.divergence.kind)
  settings, temperature = config.method, config.divergence.kind.temperature
  begin = student_lib.init(config, tx)

  def init(key, pretrained):
    state, frozen = begin(key, pretrained)
    sizes = np.array([len(rows) for rows in domains.rows(config, "train").values()], np.float32)
    held = jnp.asarray(domains.held_out(config, settings.held_rows))
    frozen = dict(frozen, held_out=held, shares=jnp.asarray(sizes / sizes.sum()))
    return dict(state, discrepancy=jnp.full(len(sizes), 1 / len(sizes), jnp.float32)), frozen

  def measure(state, frozen):
    """r of the interval that begins."""

    def log_perplexity(model, params, tokens):
      hidden = student_lib.hidden(model, params, dict(tokens=tokens))
      options = dict(chunk=config.divergence.chunk, student=student_lib.head(model))
      return jnp.mean(linear_cross_entropy(hidden, model.head(params), tokens[:, 1:], **options))

    def ratio(tokens):
      own = log_perplexity(student, state["student"], tokens)
      gap = own - log_perplexity(teacher, frozen["teacher"], tokens)
      return jnp.exp(jnp.minimum(gap, 60.0))  # finite, and larger than all others

    ratios = jax.lax.map(ratio, frozen["held_out"])
    factor = jax.nn.softmax(jnp.log(state["discrepancy"]) + ratios)
    smooth = settings.smoothing * factor + (1 - settings.smoothing) / len(factor)
    return jnp.where(state["step"] == 0, factor, smooth)

  def of_position(student_logits, teacher_logits, target):
    soft = temperature**2 * divergence(student_logits, teacher_logits)
    return settings.gamma * soft - token_log_probs(student_logits, target)

  def step(state, frozen, batch, key):
    begins = state["step"] % settings.interval == 0
    discrepancy = jax.lax.cond(
      begins, measure, lambda state, _: state["discrepancy"], state, frozen
    )
    weights = jnp.where(state["step"] < settings.interval, frozen["shares"], discrepancy)
    domain_key, loss_key = jax.random.split(key)
    domain = jax.random.categorical(domain_key, jnp.log(weights), shape=(len(batch["tokens"]),))
    at = domain[:, None, None]
    rows = {k: jnp.take_along_axis(x, at, axis=1)[:, 0] for k, x in batch.items()}

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

    state = dict(state, discrepancy=discrepancy)
    state, metrics = student_lib.update(config, tx, loss, state, rows, loss_key)
    one = jnp.float32(1)
    return state, dict(metrics, **{f"domain_{i}": (w, one) for i, w in enumerate(weights)})

  return Method(init, step)
