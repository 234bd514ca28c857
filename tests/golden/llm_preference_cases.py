"""Calls for the golden values of preference losses."""

import jax.numpy as jnp
from llm_divergence_cases import mask

from distill_jax.losses import divergences as d
from distill_jax.losses import preference as pref
from distill_jax.losses import sequences as seq
from distill_jax.losses.aligndistil import adaptive_weight, extrapolate
from distill_jax.losses.log_probs import token_log_probs
from distill_jax.losses.reduce import masked_mean


def halves(x):
  """Rows are [chosen..., rejected...]."""
  return jnp.split(x, 2)


def trl_dpo(loss, *, average=False):
  """loss(chosen, rejected, i, h) on log-ratios per sequence, as TRL sums or averages them."""

  def call(i, h):
    where = i.completion_mask[:, 1:] != 0
    ratio = seq.sequence_sum(i.policy_logps - i.ref_logps, where)
    if average:  # over the completion's length, its first token included
      ratio = ratio / jnp.maximum(jnp.sum(i.completion_mask, axis=-1), 1)
    values = loss(*halves(ratio), i, h)
    return {"out": jnp.mean(values), "out_per_sequence_loss": values}

  return call


def dpo(chosen, rejected, i, h):
  return pref.dpo(chosen, rejected, beta=h["beta"], label_smoothing=h.get("label_smoothing", 0.0))


def plain(function, **names):
  """A loss of preference.py with beta and further hyperparameters under the file's names."""

  def call(chosen, rejected, i, h):
    extra = {ours: h[theirs] for ours, theirs in names.items()}
    return function(chosen, rejected, beta=h["beta"], **extra)

  return call


def aot(i, h):
  where = i.completion_mask[:, 1:] != 0
  policy_gap, reference_gap = (
    c - r for c, r in (halves(seq.sequence_sum(x, where)) for x in (i.policy_logps, i.ref_logps))
  )
  values = dpo(pref.sorted_gap(policy_gap, reference_gap), 0.0, i, h)
  return {"out": jnp.mean(values), "out_per_sequence_loss": values}


def f_dpo(score):
  def loss(chosen, rejected, i, h):
    return pref.dpo(score(chosen, h), score(rejected, h), beta=h["beta"])

  return trl_dpo(loss)


def ld_dpo(i, h):
  chosen, rejected = halves(i.completion_mask[:, 1:] != 0)
  weights = seq.shared_length_weights(chosen, rejected, beyond=h["ld_alpha"])
  ratio = jnp.sum((i.policy_logps - i.ref_logps) * jnp.concatenate(weights), axis=-1)
  values = pref.dpo(*halves(ratio), beta=h["beta"])
  return {"out": jnp.mean(values), "out_per_sequence_loss": values}


def wpo(chosen, rejected, i, h):
  where = i.completion_mask[:, 1:] != 0
  weights = seq.policy_weights(i.policy_logps, i.log_sum_sq, where=where)
  c, r = halves(weights)
  return c * r * pref.dpo(chosen, rejected, beta=h["beta"])


def sft(i, h):
  """Minus the mean over the chosen tokens of the whole batch."""
  where = halves(i.completion_mask[:, 1:] != 0)[0]
  loss = -masked_mean(halves(i.policy_logps)[0], where)
  return {"out": loss, "out_per_sequence_loss": jnp.broadcast_to(loss, len(where))}


def cpo(i, h):
  chosen, rejected = (
    pref.alpha_reward(x, alpha=h.get("alpha", 0.0))
    for x in (i.policy_chosen_logps, i.policy_rejected_logps)
  )
  kind, beta = h["loss_type"], h["beta"]
  if kind == "hinge":
    return pref.hinge(chosen, rejected, beta=beta)
  if kind == "ipo":
    return pref.ipo(chosen, rejected, beta=beta)
  margin = h["simpo_gamma"] if kind == "simpo" else 0.0
  return pref.dpo(chosen, rejected, beta=beta, margin=margin, label_smoothing=h["label_smoothing"])


def simpo(i, h):
  """Its margin is a share of beta."""
  beta, margin = h["beta"], h["beta"] * h["gamma_beta_ratio"]
  pair = i.policy_chosen_logps, i.policy_rejected_logps
  if h["loss_type"] == "hinge":
    return pref.hinge(*pair, beta=beta, margin=margin)
  return pref.dpo(*pair, beta=beta, margin=margin, label_smoothing=h["label_smoothing"])


def orpo(i, h):
  """The authors add beta log sigmoid and subtract it later."""
  odds = pref.log_odds_ratio(i.policy_chosen_logps, i.policy_rejected_logps)
  losses = -h["beta"] * pref.dpo(odds, 0.0, beta=1.0)
  return {
    "out": i.policy_nll_loss - jnp.mean(losses),
    "out_losses": losses,
    "out_log_odds_mean": jnp.mean(odds),
  }


def kto(i, h):
  """Losses are returned with the desirable answers first."""
  where = i.completion_mask[:, 1:] != 0
  ratio = seq.sequence_sum(i.policy_logps - i.ref_logps, where)
  good = i.label != 0
  if h["loss_type"] == "apo_zero_unpaired":
    kl = jnp.zeros(1)
    losses = pref.apo_zero_unpaired(ratio, good, beta=h["beta"])
    losses *= jnp.where(good, h["desirable_weight"], h["undesirable_weight"])
  else:
    kl = jnp.maximum(jnp.mean(i.KL_logps - i.ref_KL_logps), 0.0)
    losses = pref.kto(
      ratio,
      good,
      kl,
      beta=h["beta"],
      desirable_weight=h["desirable_weight"],
      undesirable_weight=h["undesirable_weight"],
    )
  order = jnp.argsort(~good, stable=True)
  return {"out": jnp.mean(losses), "out_losses": losses[order], "out_kl": kl}


def bco(i, h):
  """The running mean takes a step's values in before the step uses it."""
  state, out, deltas = pref.RunningMean(jnp.array(0.0), jnp.array(0.0)), [], []
  chosen = i.policy_chosen_logps - i.ref_chosen_logps
  rejected = i.policy_rejected_logps - i.ref_rejected_logps
  for c, r in zip(chosen, rejected, strict=True):
    ratios = jnp.concatenate([c, r])
    state = pref.update_mean(state, h["beta"] * ratios)
    good = jnp.arange(len(ratios)) < len(c)
    out.append(jnp.mean(pref.bco(ratios, good, beta=h["beta"], baseline=state.mean)))
    deltas.append(state.mean)
  return {"out": jnp.stack(out), "out_delta": jnp.stack(deltas)}


def redi(i, h):
  return pref.redi(
    i.chosen_logps / jnp.maximum(i.chosen_lengths, 1),
    i.rejected_logps / jnp.maximum(i.rejected_lengths, 1),
    chosen_weight=h["reinforce_chosen_coef"],
    rejected_weight=h["reinforce_rejected_coef"],
    gamma=h["neg_weighting_gamma"] if h["use_neg_weighting"] else None,
  )


def dpkd(i, h):
  """Per token; the simpo option divides by the length before a trailing repeat, over 256."""
  s_c, s_r, t_c, t_r = pref.teacher_student_pair(i.student_logits, i.teacher_logits)
  chosen, rejected = (s_c, s_r) if h["reference_free"] else (s_c - t_c, s_r - t_r)
  beta = h["dpo_beta"]
  if h["ipo"]:
    loss = pref.ipo(chosen, rejected, beta=beta)
  elif h["DPOP"]:
    loss = pref.dpo(chosen, rejected, beta=beta)
    loss += pref.dpo_positive(s_c, t_c, weight=h["DPOP_lambda"])
  else:
    loss = pref.dpo(chosen, rejected, beta=beta, label_smoothing=h["label_smoothing"])
    if h["simpo"]:
      loss = loss / (trailing_start(jnp.argmax(i.student_logits, axis=-1)) / 256)[:, None]
  return masked_mean(loss, mask(i))


def trailing_start(ids):
  """Where the last run of equal ids begins; 0 if all are equal."""
  other = jnp.flip(ids != ids[:, -1:], axis=1)
  length = ids.shape[1]
  return length - jnp.where(jnp.any(other, axis=1), jnp.argmax(other, axis=1), length)


def distillm2(i, h):
  """Rows are [chosen..., rejected...]; the code shifts labels against logits."""
  s, t = i.student_logits[:, :-1], i.teacher_logits[:, :-1]
  labels = i.labels[:, 1:]
  where = labels != -100
  mean_s, mean_t = (
    seq.sequence_mean(token_log_probs(x, labels, where=where), where) for x in (s, t)
  )
  kind = h["loss_type"]

  def terms(divergence, **hyper):
    return seq.sequence_mean(divergence(s, t, where=where, **hyper), where)

  a1, a2 = h["base_alpha_1"], h["base_alpha_2"]
  if h.get("logp_logq") is not None:
    a1 = pref.adaptive_skew(mean_s, mean_t, gap=h["logp_logq"], base=a1)
  if h.get("logq_logp") is not None:
    a2 = pref.adaptive_skew(mean_t, mean_s, gap=h["logq_logp"], base=a2)
  columns = lambda a: a if isinstance(a, float) else a[:, None]  # noqa: E731
  weight = 1.0
  if h.get("gradual"):
    weight += 0.5 * min(1.0, 2 * h["global_step"] / h["max_steps"])
  reverse = {"skew": columns(a2), "stop_mixture": True}
  if kind == "distillm_v2":
    forward = terms(d.skew_forward_kl, skew=columns(a1))
    backward = terms(d.skew_reverse_kl, **reverse)
    values = (2 - weight) * halves(forward)[0] + weight * halves(backward)[1]
    tea, ref = forward, backward
  elif kind == "distillm_v1":
    tea, ref = terms(d.skew_forward_kl, skew=columns(a1)), terms(d.skew_reverse_kl, **reverse)
    values = sum(halves(ref))
  elif kind == "gkd":
    tea = ref = terms(d.generalized_js, beta=0.9)
    values = sum(halves(tea))
  elif kind == "dpkd":
    tea, ref = terms(d.forward_kl), -terms(d.reverse_kl)  # the sign is theirs, and unused
    values = pref.dpo(*halves(mean_s - mean_t), beta=h["beta"])
  else:
    tea, ref = terms(d.forward_kl), -terms(d.reverse_kl)
    values = -halves(mean_s)[0] if kind == "seqkd" else halves(tea)[0]
  return {
    "out": values,
    "out_tea_pos_kl": tea,
    "out_ref_pos_kl": ref,
    "out_mean_logps": mean_s,
    "out_tea_mean_logps": mean_t,
  }


def align_distil(i, h):
  """theorem1: from the reference; contrast, aligndistil: from the tuned model."""
  tuned, reference, kind = i.dpo_teacher_logits, i.ref_logits, h["reward_boost_type"]
  weight, factor = h["beta"] / h["beta2"], h["beta2"]
  if kind in ("theorem1_adaptive", "aligndistil"):
    weight = adaptive_weight(tuned, reference, strength=h["beta2"])
    factor = h["beta"] / weight
  base = reference if kind in ("theorem1", "theorem1_adaptive") else tuned
  target = extrapolate(base, tuned, reference, weight) / h["kd_temperature"]
  where = mask(i)
  values = factor * d.reverse_kl(i.student_logits, target, where=where)
  reduce = seq.sequence_mean if h["reward_len_norm"] else seq.sequence_sum
  return jnp.mean(reduce(values, where))


CASES = {
  "aligndistil_offpolicy": align_distil,
  "bco_unpaired_seq": bco,
  "cpo_hinge": cpo,
  "cpo_ipo": cpo,
  "cpo_sigmoid": cpo,
  "cpo_simpo": cpo,
  **{
    f"distillm2_{kind}": distillm2
    for kind in ("distillm_v1", "distillm_v2", "dpkd", "gkd", "kd", "seqkd", "speculative_kd")
  },
  "dpkd_official": dpkd,
  "dpo_aot": aot,
  "dpo_aot_unpaired": trl_dpo(lambda c, r, i, h: dpo(pref.sorted_gap(c, r), 0.0, i, h)),
  "dpo_apo_down": trl_dpo(plain(pref.apo_down)),
  "dpo_apo_zero": trl_dpo(plain(pref.apo_zero)),
  "dpo_bco_pair": trl_dpo(
    lambda c, r, i, h: pref.bco(c, True, beta=h["beta"]) + pref.bco(r, False, beta=h["beta"])
  ),
  "dpo_discopop": trl_dpo(plain(pref.discopop, temperature="discopop_tau")),
  "dpo_exo_pair": trl_dpo(plain(pref.exo, label_smoothing="label_smoothing")),
  "dpo_fdiv_alpha_divergence": f_dpo(lambda x, h: pref.alpha_score(x, alpha=h["f_alpha"])),
  "dpo_fdiv_forward_kl": f_dpo(lambda x, h: pref.alpha_score(x, alpha=0.0)),
  "dpo_fdiv_js_divergence": f_dpo(lambda x, h: pref.js_score(x)),
  "dpo_hinge": trl_dpo(plain(pref.hinge)),
  "dpo_ipo": trl_dpo(plain(pref.ipo), average=True),
  "dpo_ld": ld_dpo,
  "dpo_nca_pair": trl_dpo(plain(pref.nca)),
  "dpo_robust": trl_dpo(plain(pref.robust_dpo, flip="label_smoothing")),
  "dpo_sft": sft,
  "dpo_sigmoid": trl_dpo(dpo),
  "dpo_sigmoid_norm": trl_dpo(dpo, average=True),
  "dpo_sppo_hard": trl_dpo(plain(pref.sppo)),
  "dpo_wpo": trl_dpo(wpo),
  "kto_apo_zero_unpaired": kto,
  "kto_kto": kto,
  "orpo": orpo,
  "redi": redi,
  "simpo": simpo,
}
