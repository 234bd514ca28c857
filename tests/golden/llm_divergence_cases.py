"""Calls for the golden values of divergences between full distributions."""

import jax.numpy as jnp

from distill_jax.losses import divergences as d
from distill_jax.losses import taid
from distill_jax.losses.adaptive_kl import adaptive_kl, adaptive_kl_weights
from distill_jax.losses.alpha_beta import alpha_beta, clipped_alpha
from distill_jax.losses.decoupled import decoupled_kd, standardize
from distill_jax.losses.linear_divergence import linear_divergence
from distill_jax.losses.log_probs import entropy, token_log_probs
from distill_jax.losses.policy import expected_value
from distill_jax.losses.reduce import masked_mean
from distill_jax.losses.tokens import balance_weights, entropy_gate


def mask(i):
  """The positions that count, however the file writes them."""
  if hasattr(i, "mask"):
    return i.mask != 0
  return i.labels != -100 if hasattr(i, "labels") else None


def tokens(divergence, i, **hyper):
  """A divergence of each position."""
  return divergence(i.student_logits, i.teacher_logits, where=mask(i), **hyper)


def mean(divergence, i, **hyper):
  """Its mean over the positions that count."""
  return masked_mean(tokens(divergence, i, **hyper), mask(i))


def mean_entropy(i):
  """The constant by which a cross-entropy form exceeds the KL divergence."""
  return masked_mean(entropy(i.teacher_logits), mask(i))


def reduced(values, h, count, vocabulary):
  """sum | batchmean | mean as torch code writes them: "mean" divides by the vocabulary too."""
  if h["reduction"] == "none":
    return values
  by = {"sum": 1, "batchmean": count, "mean": count * vocabulary}[h["reduction"]]
  return jnp.sum(values) / by


def ab(alpha, beta):
  """alpha_beta, with the authors' 1/alpha instead of 1/alpha^2 in the limits."""
  limit = alpha * beta == 0 or alpha + beta == 0
  factor = (alpha or beta or 1) if limit else 1
  return lambda s, t, where: factor * alpha_beta(s, t, alpha=alpha, beta=beta, where=where)


def f_divergence(i, h):
  surrogate, value = tokens(clipped_alpha, i, alpha=h["alpha"], clip=h["iw_clip"])
  return {"out": surrogate, "out_loss_value": value}


def bdkd(i, h):
  teacher, student = balance_weights(i.student_logits, i.teacher_logits, factor=3.0)
  forward, reverse = tokens(d.soft_cross_entropy, i), tokens(d.reverse_kl, i)
  return masked_mean(teacher * forward + student * reverse, mask(i))


def akl(i, h):
  hyper = {"head_mass": h["mu"], "boundary_in_head": False}
  head, tail = adaptive_kl_weights(i.student_logits, i.teacher_logits, **hyper)
  return {"out": mean(adaptive_kl, i, **hyper), "out_head_ratio": head, "out_tail_ratio": tail}


def dkd(i, h):
  s, t = i.student_logits, i.teacher_logits
  if h["logit_stand"]:
    s, t = standardize(s), standardize(t)
  values = decoupled_kd(
    s,
    t,
    i.labels,
    target_weight=h["alpha"],
    other_weight=h["beta"],
    temperature=h["temperature"],
    where=mask(i),
  )
  return jnp.mean(values) * h["temperature"] ** 2  # over all positions, masked ones too


def gkd_reductions(i, h):
  where = mask(i) if h["labels_given"] else None
  values = d.generalized_js_terms(i.student_logits, i.teacher_logits, beta=h["beta"], where=where)
  if h["num_items_in_batch"]:
    return jnp.sum(values) / h["num_items_in_batch"]
  count = len(values) if where is None else jnp.sum(where)
  return reduced(values, h, count, i.student_logits.shape[-1])


def liger_jsd(i, h):
  """Biases, where there are some, become a last row of the heads."""
  where = i.labels != -100

  def extend(x, weight, bias):
    if bias is None:
      return x, weight.T
    ones = jnp.ones((len(x), 1))
    return jnp.concatenate([x, ones], axis=1), jnp.concatenate([weight, bias[:, None]], axis=1).T

  def both(s, t, targets):
    soft = d.generalized_js(s, t, beta=h["beta"], temperature=h["temperature"])
    hard = -token_log_probs(s, targets)
    return h["weight_hard_loss"] * hard + h["weight_soft_loss"] * soft

  values = linear_divergence(
    both,
    *extend(i.student_input, i.student_weight, getattr(i, "student_bias", None)),
    *extend(i.teacher_input, i.teacher_weight, getattr(i, "teacher_bias", None)),
    jnp.where(where, i.labels, 0),
    where=where,
    chunk=h["chunk_size"],
  )
  return masked_mean(values, where)


def aligndistil_kd(i, h):
  kind, t = h["divergence"], h["temperature"]
  if kind == "advantage_expectation":
    return -masked_mean(expected_value(i.student_logits / t, i.teacher_logits / t), mask(i))
  if kind == "sequence_reverse_kl":
    return jnp.mean(jnp.sum(tokens(d.reverse_kl, i, temperature=t), axis=-1))
  return mean({"forward_kl": d.forward_kl, "reverse_kl": d.reverse_kl}[kind], i, temperature=t)


def taid_sequence(i, h):
  state, losses, ts = taid.taid_init(start=h["t_start"], dtype=jnp.float64), [], []
  for step, (s, t) in enumerate(zip(i.student_logits, i.teacher_logits, strict=True)):
    target = taid.taid_target(s, t, state.t)
    losses.append(masked_mean(d.soft_cross_entropy(s, target, where=i.mask != 0), i.mask != 0))
    state = taid_step(state, losses[-1], step, h)
    ts.append(state.t)
  return {"out": jnp.stack(losses), "out_t": jnp.stack(ts)}


def taid_step(state, loss, step, h):
  return taid.taid_update(
    state,
    loss,
    step / h["num_train_steps"],
    start=h["t_start"],
    end=h["t_end"],
    rate=h["alpha"],
    decay=h["beta"],
    adaptive=not h.get("disable_adaptive", False),
  )


def taid_schedule(i, h):
  state = taid.taid_init(start=h["t_start"], dtype=jnp.float64)
  rows = []
  for loss, step in zip(i.losses, i.global_step, strict=True):
    delta, _ = taid.taid_delta(state, loss, rate=h["alpha"], decay=h["beta"])
    state = taid_step(state, loss, step, h)
    rows.append((state.t, delta, state.momentum))
  return dict(zip(("out", "out_delta_t", "out_momentum"), jnp.array(rows).T, strict=True))


def taid_loss(i, h):
  target = taid.taid_target(i.student_logits, i.teacher_logits, h["t"])
  return masked_mean(d.soft_cross_entropy(i.student_logits, target, where=mask(i)), mask(i))


def ctkd(i, h):
  """The authors' function scales the gradient by +lambda: a strength of -lambda."""
  ramp = taid.cosine_strength(h["epoch_arg"] / h["num_loops"])
  strength = h["lambda_min"] + (h["lambda_max"] - h["lambda_min"]) * ramp
  tau = taid.learned_temperature(
    i.global_temperature, -strength, low=h["temp_start"], span=h["temp_end"]
  )
  return tau**2 * mean(d.soft_cross_entropy, i, temperature=tau)


def entropy_gated(i, h):
  fkl, rkl = tokens(d.forward_kl, i), tokens(d.reverse_kl, i)
  gate = entropy_gate(i.teacher_logits, threshold=h["threshold"])
  return {
    "out": masked_mean(rkl + gate * fkl, mask(i)),
    "out_switch_variant": masked_mean((1 - gate) * rkl + gate * fkl, mask(i)),
    "out_teacher_entropy": entropy(i.teacher_logits),
    "out_gate": gate,
    "out_fkl": d.forward_kl(i.student_logits, i.teacher_logits),
    "out_rkl": d.reverse_kl(i.student_logits, i.teacher_logits),
  }


def dskd(divergence):
  """tokenkit's port of DSKD: per position, or summed over targets that are not padding."""

  def call(i, h):
    s, t = i.student_logits / h["kd_temp"], i.teacher_logits / h["kd_temp"]
    values = divergence(s, t, h)
    if h["reduction"] == "none":
      return values
    return jnp.sum(jnp.where(i.target != h["padding_id"], values, 0))

  return call


def spec_acceptance(i, h):
  rate = 1 - d.total_variation(i.draft_logits, i.target_logits)
  mean_rate = masked_mean(rate, mask(i))
  expected = jnp.sum(mean_rate ** jnp.arange(h["gamma"] + 1))
  return {"out": rate, "out_mean_alpha": mean_rate, "out_expected_tokens": expected}


def minillm_single_step(i, h):
  values = tokens(d.reverse_kl, i)
  return reduced(values, h, jnp.sum(i.mask), i.student_logits.shape[-1])


def single_step_reg(i, h):
  ent = jnp.where(mask(i), entropy(i.student_logits), 0)
  xent = tokens(d.reverse_kl, i) + ent
  return {"out": mean(d.reverse_kl, i), "out_xent": xent, "out_ent": ent}


def miniplm(i, h):
  return masked_mean(tokens(d.soft_cross_entropy, i), mask(i), axis=-1)


CASES = {
  "abkd_ab_div": lambda i, h: mean(ab(h["alpha"], h["beta"]), i),
  "abkd_abkl_classif": lambda i, h: mean(
    alpha_beta, i, alpha=h["alpha"], beta=h["beta"], temperature=h["temperature"]
  ),
  "abkd_alphanet": lambda i, h: jnp.maximum(
    mean(ab(h["alpha"], 1 - h["alpha"]), i), mean(ab(h["beta"], 1 - h["beta"]), i)
  ),
  "abkd_bdkd": bdkd,
  "abkd_f_divergence": f_divergence,
  "abkd_wsd": lambda i, h: (
    mean(d.symmetric_kl, i, weight=h["lam"]) + (1 - h["lam"]) * mean_entropy(i)
  ),
  "akl": akl,
  "aligndistil_kdloss": aligndistil_kd,
  "distillkit_dense_kl": lambda i, h: (
    h["temperature"] ** 2 * mean(d.forward_kl, i, temperature=h["temperature"])
  ),
  "distillkit_dense_jsd": lambda i, h: (
    h["temperature"] ** 2 * mean(d.generalized_js, i, temperature=h["temperature"])
  ),
  "distillkit_dense_tvd": lambda i, h: (
    h["temperature"] ** 2 * mean(d.total_variation, i, temperature=h["temperature"])
  ),
  "distillm_forward_kl": lambda i, h: mean(d.soft_cross_entropy, i),
  "distillm_reverse_kl": lambda i, h: mean(d.reverse_kl, i),
  "distillm_js": lambda i, h: mean(d.generalized_js, i, beta=1 - h["lam"]),
  "distillm_skewed_forward_kl": lambda i, h: (
    mean(d.skew_forward_kl, i, skew=h["lam"]) + mean_entropy(i)
  ),
  "distillm_skewed_reverse_kl": lambda i, h: mean(d.skew_reverse_kl, i, skew=h["lam"]),
  "distillm_symmetric_kl": lambda i, h: (
    mean(d.symmetric_kl, i, weight=h["lam"]) + (1 - h["lam"]) * mean_entropy(i)
  ),
  "distillm_tvd": lambda i, h: mean(d.total_variation, i),
  "dkd_token": dkd,
  "entropy_gated_kl": entropy_gated,
  "gkd_jsd": lambda i, h: mean(d.generalized_js, i, beta=h["beta"], temperature=h["temperature"]),
  "gkd_jsd_reductions": gkd_reductions,
  "liger_fused_linear_jsd": liger_jsd,
  "minillm_single_step_reg": single_step_reg,
  "miniplm_vanilla_kd": miniplm,
  "opd_forward_kl": lambda i, h: mean(d.forward_kl, i),
  "opd_jsd": lambda i, h: mean(d.generalized_js, i, beta=h["beta"]),
  "opd_reverse_kl": lambda i, h: mean(d.reverse_kl, i),
  "spec_acceptance_rate": spec_acceptance,
  "taid_forward_seq": taid_sequence,
  "taid_loss": taid_loss,
  "taid_repo_ctkd": ctkd,
  "taid_repo_js": lambda i, h: mean(d.generalized_js, i, beta=h["teacher_weight"]),
  "taid_repo_skew_fkl": lambda i, h: (
    mean(d.skew_forward_kl, i, skew=h["target_weight"]) + mean_entropy(i)
  ),
  "taid_repo_skew_rkl": lambda i, h: mean(d.skew_reverse_kl, i, skew=h["target_weight"]),
  "taid_repo_tvd": lambda i, h: mean(d.total_variation, i),
  "taid_update_t": taid_schedule,
  "tokenkit_dskd_forward_kl": dskd(lambda s, t, h: d.forward_kl(s, t)),
  "tokenkit_dskd_reverse_kl": dskd(lambda s, t, h: d.reverse_kl(s, t)),
  "tokenkit_dskd_skewed_forward_kl": dskd(
    lambda s, t, h: d.skew_forward_kl(s, t, skew=h["skew_lambda"])
  ),
  "tokenkit_dskd_skewed_reverse_kl": dskd(
    lambda s, t, h: d.skew_reverse_kl(s, t, skew=h["skew_lambda"])
  ),
  "tokenkit_dskd_adaptive_kl": dskd(lambda s, t, h: adaptive_kl(s, t, head_mass=1 - h["alpha"])),
  "trl_minillm_single_step": minillm_single_step,
  "trl_sdpo_full_logits": lambda i, h: tokens(d.generalized_js, i, beta=h["alpha"]),
}
