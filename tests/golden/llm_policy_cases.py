"""Calls for the golden values of policy losses and advantages."""

import jax
import jax.numpy as jnp
from llm_divergence_cases import mask

from distill_jax.losses import divergences as d
from distill_jax.losses import policy, sparse
from distill_jax.losses import sequences as seq
from distill_jax.losses import tokens as tk
from distill_jax.losses.log_probs import token_log_probs
from distill_jax.losses.reduce import masked_mean


def grpo(i, h):
  where = i.completion_mask != 0
  log_ratio = i.per_token_logps - i.old_per_token_logps
  advantages = i.advantages[:, None]
  token_ratio = log_ratio
  if h["importance_sampling_level"] == "sequence":
    log_ratio = policy.sequence_log_ratio(log_ratio, where=where)
  kind, low, high = h["loss_type"], h["epsilon_low"], h["epsilon_high"]
  if kind == "cispo":  # epsilon_high is the cap itself
    weight = jnp.minimum(jnp.exp(log_ratio), high)
    loss = policy.weighted_log_prob(i.per_token_logps, weight, advantages)
  elif kind == "sapo":
    loss = policy.soft_clip(log_ratio, advantages)
  elif kind == "vespo":
    weight = policy.gamma_weights(token_ratio, advantages, where=where)
    loss = policy.weighted_log_prob(i.per_token_logps, weight, advantages)
  else:
    loss = policy.clipped_surrogate(log_ratio, advantages, low=low, high=high, cap=h.get("delta"))
  if h.get("opsm") is not None:
    loss = loss * policy.off_policy_mask(token_ratio, advantages, threshold=h["opsm"], where=where)
  if h.get("teq") is not None:
    loss = loss * tk.top_entropy(i.entropies, share=h["teq"], where=where)
  if h["beta"]:
    kl = policy.k3(i.ref_per_token_logps, i.per_token_logps)
    if h.get("use_bias_correction_kl"):
      kl = kl * jnp.exp(log_ratio)
    loss = loss + h["beta"] * kl
  per_token = jnp.broadcast_to(loss, where.shape)
  return {"out": grpo_mean(per_token, where, h), "out_per_token_loss": loss}


def grpo_mean(loss, where, h):
  kind = h["loss_type"]
  if kind in ("grpo", "sapo"):
    return jnp.mean(seq.sequence_mean(loss, where))
  if kind == "luspo":
    return jnp.mean(seq.sequence_sum(loss, where))
  if kind == "dr_grpo":
    return jnp.sum(seq.sequence_sum(loss, where)) / (len(loss) * h["max_completion_length"])
  return masked_mean(loss, where)


def easy_r1(i, h):
  where = i.response_mask != 0
  log_ratio = i.log_probs - i.old_log_probs
  kind, clip = h["loss_type"], {"low": h["clip_low"], "high": h["clip_high"]}
  if kind in ("gspo", "gspo_token"):
    log_ratio = policy.sequence_log_ratio(log_ratio, where=where)
    if kind == "gspo_token":
      log_ratio = policy.token_level(log_ratio, i.log_probs)
  if kind == "cispo":
    ratio = jnp.clip(jnp.exp(log_ratio), 1 - h["clip_low"], 1 + h["clip_high"])
    loss = policy.weighted_log_prob(i.log_probs, ratio, i.advantages)
  elif kind == "sapo":
    loss = policy.soft_clip(
      log_ratio, i.advantages, positive=h["tau_positive"], negative=h["tau_negative"]
    )
  else:
    loss = policy.clipped_surrogate(log_ratio, i.advantages, dual=h["clip_dual"], **clip)
  if h["avg"] == "token":
    return masked_mean(loss, where)
  return jnp.mean(seq.sequence_mean(loss, where))


def aggregate(loss, where, mode):
  """verl's names for means; sequences in which nothing counts are left out."""
  if mode == "token-mean":
    return masked_mean(loss, where)
  total = seq.sequence_sum(loss, where)
  if mode == "seq-mean-token-sum-norm":
    return jnp.sum(total) / loss.shape[-1]
  if mode == "seq-mean-token-mean":
    total = seq.sequence_mean(loss, where)
  return masked_mean(total, jnp.any(where, axis=-1))


def verl_ppo(i, h):
  log_ratio = jnp.clip(i.log_prob - i.old_log_prob, -20.0, 20.0)
  high = h["clip_ratio"] if h["clip_ratio_high"] is None else h["clip_ratio_high"]
  loss = policy.clipped_surrogate(
    log_ratio, i.advantages, low=h["clip_ratio"], high=high, dual=h["clip_ratio_c"]
  )
  return aggregate(loss, mask(i), h["agg"])


def gopd(i, h):
  advantages = policy.distillation_advantage(
    i.teacher_log_prob,
    i.old_log_prob,
    getattr(i, "base_log_prob", None),
    strength=h["lambda_vals"],
  )
  old = jax.lax.stop_gradient(i.log_prob) if h["on_policy"] else i.old_log_prob
  loss = policy.clipped_surrogate(
    jnp.clip(i.log_prob - old, -20.0, 20.0),
    advantages,
    low=h["clip_low"],
    high=h["clip_high"],
    dual=h["clip_c"],
  )
  return {"out": aggregate(loss, mask(i), h["loss_agg_mode"]), "out_advantages": advantages}


def minillm_advantages(i, h):
  returns = seq.discounted_returns(i.rewards, discount=h["gamma"])
  advantages = returns / jnp.maximum(seq.remaining(i.mask != 0), 1)
  return seq.whiten(advantages) if h["use_whitening"] else advantages


def minillm_pg(i, h):
  """The importance weight multiplies the ratio before it is clipped."""
  log_ratio = (i.logprobs - i.old_logprobs) * i.mask + jnp.log(i.w)
  clip = {"low": h["cliprange"], "high": h["cliprange"]}
  return masked_mean(policy.clipped_surrogate(log_ratio, i.advantages, **clip), mask(i))


def minillm_rev_kl(i, h):
  where = mask(i)
  return policy.k3(jnp.where(where, i.log_p, 0.0), jnp.where(where, i.log_q, 0.0))


def minillm_reward(i, h):
  """The logits of position t predict token t + 1; padding gets 0."""
  ids = jnp.concatenate([i.query_ids, i.response_ids], axis=1)
  length = i.response_ids.shape[1]
  scores = token_log_probs(
    i.teacher_full_logits[:, :-1],
    ids[:, 1:],
    where=(ids != h["pad_token_id"])[:, :-1],
  )
  return scores[:, -length:]


def trl_minillm_advantage(i, h):
  """TRL weighs the reward of token i by gamma^i, not gamma^(i - t)."""
  gamma, where = h["gamma"], mask(i)
  rewards = jnp.where(where, i.teacher_logps - i.student_logps, 0.0)
  if gamma == 0:
    return rewards
  returns = seq.discounted_returns(rewards, discount=gamma)
  if h["length_normalization"]:
    return returns / seq.discounted_returns(jnp.where(where, 1.0, 1e-4), discount=gamma)
  return returns * gamma ** jnp.arange(where.shape[-1])


def iw_opd(i, h):
  where = i.labels != -100
  log_q = token_log_probs(
    i.student_logits, i.completion_tokens, temperature=h["temperature"], where=where
  )
  old = getattr(i, "rollout_logprobs", jax.lax.stop_gradient(log_q))
  advantages = policy.distillation_advantage(i.teacher_actual_logprobs, old)
  weights = tk.prefix_weights(
    advantages, strength=h["iw_opd_gamma"], where=where, epsilon=h["iw_opd_epsilon"]
  )
  return masked_mean(policy.weighted_log_prob(log_q, weights, advantages), where)


def sdpo(i, h):
  js = lambda s, t, where=None: d.generalized_js(s, t, beta=h["alpha"], where=where)  # noqa: E731
  log_q = token_log_probs(i.student_logits, i.labels)
  if h["mode"] == "full":
    loss = js(i.student_logits, i.teacher_logits)
  elif h["mode"] == "token":
    loss = policy.sampled_kl(log_q, token_log_probs(i.teacher_logits, i.labels))
  else:
    rest = {"topk_tail": "tail", "topk_renorm": "drop"}[h["mode"]]
    loss = sparse.top_k_divergence(
      js, i.student_logits, i.teacher_logits, k=h["topk"], support="student", rest=rest
    )
  if h["is_clip"] is not None:
    loss = loss * tk.clipped_importance(log_q, i.old_log_probs, cap=h["is_clip"])
  where = (i.mask * i.self_distillation_mask[:, None]) != 0
  return aggregate(loss, where, h["agg"])


def sampled_token(i, h):
  log_q, log_p = (
    token_log_probs(x, i.completion_ids) for x in (i.student_logits, i.teacher_logits)
  )
  return policy.sampled_kl(log_q, log_p)


def cepo(i, h):
  total = seq.sequence_sum(i.advantages, i.response_mask)[:, None]
  out = policy.reweight_advantages(
    i.advantages,
    i.pos_teacher_log_probs - i.neg_teacher_log_probs,
    sign=jnp.sign(total),
    mix=h["lam"],
    clip=h["eps_w"],
    bound=jnp.inf,
  )
  return out * i.response_mask


def rlsd(i, h):
  out = policy.reweight_advantages(
    i.advantages,
    i.teacher_log_probs - i.old_log_probs,
    sign=jnp.sign(i.advantages),
    mix=h["lambda_coef"],
    clip=h["epsilon_w"],
  )
  return out * i.response_mask


def tvd_identity(i, h):
  reward = policy.acceptance_reward(i.student_logits, i.teacher_logits)
  return -masked_mean(policy.expected_value(i.student_logits, reward, where=mask(i)), mask(i))


def tvdpp(i, h):
  reward = policy.acceptance_reward(i.student_logits, i.teacher_logits)
  reward, mu, sigma = policy.normalize_reward(i.student_logits, reward, where=mask(i))
  loss = -masked_mean(policy.expected_value(i.student_logits, reward, where=mask(i)), mask(i))
  return {"out": loss, "out_mu": mu, "out_sigma": sigma}


CASES = {
  **{
    f"grpo_{kind}": grpo
    for kind in ("bnpo", "cispo", "dapo", "dr_grpo", "grpo", "luspo", "sapo", "vespo")
  },
  "cepo_policy_loss": easy_r1,
  "cepo_weighting": cepo,
  "gopd": gopd,
  "minillm_advantages": minillm_advantages,
  "minillm_get_log_probs": lambda i, h: token_log_probs(i.student_logits, i.ids, where=mask(i)),
  "minillm_mixed_is_weight": lambda i, h: tk.mixture_importance(
    i.student_logprobs, i.teacher_logprobs, teacher_share=h["teacher_mixed_alpha"]
  ),
  "minillm_pg_loss": minillm_pg,
  "minillm_rev_kl_estimate": minillm_rev_kl,
  "minillm_reward": minillm_reward,
  "rlsd_reweighting": rlsd,
  "sdpo_official": sdpo,
  "trl_iw_opd": iw_opd,
  "trl_minillm_advantage": trl_minillm_advantage,
  "trl_sdpo_is_clip": lambda i, h: (
    i.per_token_loss
    * tk.clipped_importance(i.student_log_probs, i.old_log_probs, cap=h["clip_coeff"])
  ),
  "trl_sdpo_sampled_token": sampled_token,
  "tvd_policy_gradient_identity": tvd_identity,
  "tvdpp": tvdpp,
  "verl_ppo_dual_clip": verl_ppo,
}
