"""Calls for the golden values of losses on a few ids, on features, and of token weights."""

import jax
import jax.numpy as jnp
from llm_divergence_cases import mask, tokens

from distill_jax.losses import divergences as d
from distill_jax.losses import ranking, sparse
from distill_jax.losses import tokens as tk
from distill_jax.losses.features import cosine_distance, mean_squared
from distill_jax.losses.linear_divergence import linear_divergence
from distill_jax.losses.log_probs import token_log_probs
from distill_jax.losses.reduce import masked_mean


def kit_sparse(divergence):
  """DistillKit: T^2 times the mean; its clamps are at 1e-8."""

  def call(i, h):
    t = h["temperature"]
    given = i.target_logprobs if hasattr(i, "target_logprobs") else i.target_logits
    values = sparse.cached_divergence(
      divergence,
      i.student_logits,
      i.target_ids,
      given * h["generation_temperature"],
      rest={"zero": "zero", "symmetric_uniform": "tail"}[h["missing"]],
      temperature=t,
      floor=1e-8,
      where=mask(i),
    )
    return t**2 * masked_mean(values, mask(i))

  return call


def densify(i, h):
  fill = h["fill_value"] if h["missing"] == "zero" else None
  dense = sparse.densify(i.top_indices, i.top_values, vocabulary=h["vocab_size"], fill=fill)
  return jax.nn.log_softmax(dense) if h["renormalize"] else dense


def pairs(loss, epsilon, **hyper):
  def call(i, h):
    total, count = loss(
      i.student_logits, i.target_ids, i.target_logprobs, **{k: h[v] for k, v in hyper.items()}
    )
    return jnp.sum(jnp.where(mask(i), total, 0)) / (jnp.sum(jnp.where(mask(i), count, 0)) + epsilon)

  return call


def hidden(distance):
  def call(i, h):
    layers = [
      masked_mean(
        distance(getattr(i, f"student_h{s}"), getattr(i, f"teacher_h{t}"), where=mask(i)), mask(i)
      )
      for s, t in h["layer_mapping"]
    ]
    return jnp.mean(jnp.stack(layers))

  return call


def lfm2(i, h):
  log_p = jax.nn.log_softmax(i.teacher_logits)
  top, ids = jax.lax.top_k(log_p, h["K"])
  binary, mass, inner = sparse.decoupled_top_k(
    i.student_logits, ids, top, temperature=h["tau"], floor=1e-15
  )
  return {
    "out": binary + mass * inner,
    "out_binary_term": binary,
    "out_conditional_kl_tau": inner,
  }


def topk_jsd(i, h):
  beta, t = h["beta"], h["temperature"]
  js = lambda s, p, where: d.generalized_js(s, p, beta=beta, where=where)  # noqa: E731
  if not h["top_k"]:
    values = tokens(d.generalized_js, i, beta=beta, temperature=t)
  else:
    values = sparse.top_k_divergence(
      js,
      i.student_logits,
      i.teacher_logits,
      k=h["top_k"],
      support={0: "teacher", 1: "student"}.get(beta, "union"),
      rest="tail" if h["add_tail"] else "drop",
      temperature=t,
      where=mask(i),
    )
  return masked_mean(values, mask(i))


def sparse_top1(i, h):
  """Support: the teacher's first id and the sampled id, for beta = 1 the sampled one alone."""
  first, sampled = i.teacher_top1_ids[..., None], i.reverse_ids[..., None]
  log_p = i.reverse_teacher_logprobs[..., None]
  ids, valid = sampled, None
  if h["beta"] != 1:
    ids, valid = sparse.union(first, sampled)
    log_p = jnp.concatenate([i.teacher_top1_logprobs[..., None], log_p], axis=-1)
  values = sparse.cached_divergence(
    lambda s, t, where: d.generalized_js(s, t, beta=h["beta"], where=where),
    i.student_logits,
    ids,
    log_p,
    rest="tail" if h["add_tail"] else "drop",
    valid=valid,
    where=mask(i),
  )
  return masked_mean(values, mask(i))


def sdpo_topk(i, h):
  return sparse.top_k_divergence(
    lambda s, t, where: d.generalized_js(s, t, beta=h["alpha"], where=where),
    i.student_logits,
    i.teacher_logits,
    k=h["topk"],
    support="student",
    rest="tail" if h["add_tail"] else "drop",
  )


def liger_cosine(i, h):
  """Biases, where there are some, become a last row of the heads."""
  where = i.labels != -100

  def extend(x, weight, bias):
    if bias is None:
      return x, weight.T
    ones = jnp.ones((len(x), 1))
    return jnp.concatenate([x, ones], axis=1), jnp.concatenate([weight, bias[:, None]], axis=1).T

  def both(s, t, targets):
    soft = h["beta"] * cosine_distance(s, t)
    return h["weight_hard_loss"] * -token_log_probs(s, targets) + h["weight_soft_loss"] * soft

  values = linear_divergence(
    both,
    *extend(i.student_input, i.student_weight, getattr(i, "student_bias", None)),
    *extend(i.teacher_input, i.teacher_weight, getattr(i, "teacher_bias", None)),
    jnp.where(where, i.labels, 0),
    where=where,
    chunk=4,
  )
  return masked_mean(values, where)


def tip(i, h):
  entropy = h["jsd_scale"] * tk.normalized_entropy(i.student_logits)
  js = h["jsd_scale"] * tk.normalized_js(
    i.student_logits, i.teacher_logits, top_k=h["jsd_topk"] or None
  )
  powers = {"entropy_power": h["entropy_alpha"], "divergence_power": h["jsd_gamma"]}
  return {
    "out": tk.tip_weights(entropy, js, **powers),
    "out_norm_entropy": entropy,
    "out_norm_jsd": js,
  }


def teacher_stats(i, h):
  return {
    "out": tk.normalized_entropy(i.teacher_logits),
    "out_teacher_token_prob": jnp.exp(token_log_probs(i.teacher_logits, i.target_ids)),
  }


def miniplm_score(i, h):
  score = tk.difference_score(i.large_model_loss, i.small_model_loss)
  return {"out": score, "out_kept_indices": tk.keep_top(score, keep=int(h["ratio"] * len(score)))}


def adpa(i, h):
  where = i.labels != -100
  clip = 1e-8 if h["prob_stabilize"] else None
  values = sparse.sparse_expectation(
    i.student_logits, i.margin_ids, i.margin_values, clip=clip, where=where
  )
  return -masked_mean(values, where)


def dckd(i, h):
  """The authors floor the student's probabilities at 1e-7 and the teacher's at 1e-8."""
  student = sparse.with_tail(sparse.gather(i.student_logits, i.teacher_ids))
  teacher = jnp.concatenate([i.teacher_probs, i.teacher_remaining[..., None]], axis=-1)
  values = d.forward_kl(
    jnp.maximum(student, jnp.log(1e-7)),
    jnp.log(jnp.clip(teacher, 1e-8, 1 - 1e-8)),
    where=i.labels != -100,
  )
  return masked_mean(values, i.labels != -100)


def adpa_margin(i, h):
  """The authors take the DPO teacher's smallest probability for ids that the reference lacks."""
  log_dpo, log_ref = (
    jnp.log(jnp.maximum(x, 1e-7)) for x in (i.dpo_teacher_topk_probs, i.ref_teacher_topk_probs)
  )
  gap = sparse.cached_log_ratio(
    i.dpo_teacher_topk_ids,
    log_dpo,
    i.ref_teacher_topk_ids,
    log_ref,
    missing=jnp.min(log_dpo, axis=-1, keepdims=True),
  )
  order = jnp.argsort(-gap, axis=-1, stable=True)
  valid = (i.labels != -100)[..., None]
  sort = lambda x: jnp.where(valid, jnp.take_along_axis(x, order, axis=-1), 0)  # noqa: E731
  return {"out": sort(gap), "out_ids": sort(i.dpo_teacher_topk_ids)}


CASES = {
  "adpa": adpa,
  "adpa_dckd_fkl": dckd,
  "adpa_margin_logp": adpa_margin,
  "distillkit_densify": densify,
  "distillkit_hidden_cosine": hidden(cosine_distance),
  "distillkit_hidden_mse": hidden(mean_squared),
  "distillkit_logistic_ranking": pairs(ranking.ranking_logistic, 1e-9),
  "distillkit_sparse_hinge": pairs(ranking.ranking_hinge, 1e-8, margin="margin"),
  "distillkit_sparse_jsd": kit_sparse(d.generalized_js),
  "distillkit_sparse_kl": kit_sparse(d.forward_kl),
  "distillkit_sparse_tvd": kit_sparse(d.total_variation),
  "lfm2_decoupled_topk": lfm2,
  "liger_fused_linear_cosine": liger_cosine,
  "miniplm_difference_score": miniplm_score,
  "opd_teacher_token_stats": teacher_stats,
  "tip_token_weights": tip,
  "trl_sdpo_topk": sdpo_topk,
  "trl_sparse_top1": sparse_top1,
  "trl_topk_jsd": topk_jsd,
}
