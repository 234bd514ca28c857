"""Calls for the golden values of losses between different tokenizers.

Spans of answers and groups of tokens are the data pipeline's work; here they are found by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.losses import alm
from distill_jax.losses import cross_tokenizer as ct
from distill_jax.losses.log_probs import log_softmax, token_log_probs
from distill_jax.losses.policy import k3
from distill_jax.losses.reduce import masked_mean


def spans(labels, skip_end):
  """Start and length of each answer."""
  found = []
  for row in np.asarray(labels) != -100:
    first, size = (int(np.argmax(row)), int(row.sum())) if row.any() else (0, 0)
    found.append((first, size - skip_end))
  return found


def per_sample(i, h, names, shift, loss):
  """Mean over the batch of loss(student, teacher), each with logits, ids and offsets of the answer.

  `shift` moves the logits to those that predict the answer.
  """
  student_end, teacher_end = names
  students = spans(i.student_labels, h[student_end])
  teachers = spans(i.teacher_labels, h[teacher_end])
  losses = []
  for row, ((s0, s_size), (t0, t_size)) in enumerate(zip(students, teachers, strict=True)):
    if s_size <= 0 or t_size <= 0:
      losses.append(0.0 * jnp.sum(i.student_logits[row]))
      continue

    def cut(side, start, size, row=row):
      moved = {"logits": max(start - shift, 0)}
      return {
        name: getattr(i, f"{side}_{name}")[row, (at := moved.get(name, start)) : at + size]
        for name in ("logits", "ids", "offsets")
        if hasattr(i, f"{side}_{name}")
      }

    losses.append(loss(cut("student", s0, s_size), cut("teacher", t0, t_size)))
  return jnp.mean(jnp.stack(losses))


def uld_official(i, h):
  def loss(student, teacher):
    count = min(len(student["logits"]), len(teacher["logits"]))
    distance = ct.uld(
      student["logits"][:count],
      teacher["logits"][:count],
      student_temperature=h["student_temperature"],
      teacher_temperature=h["teacher_temperature"],
    )
    return h["distillation_weight"] * jnp.mean(distance)

  return per_sample(i, h, ("skip_student_eos", "skip_teacher_eos"), 1, loss)


def groups(student_offsets, teacher_offsets):
  """The group of each token: both sides close one where their byte offsets meet."""
  s_ends, t_ends = student_offsets[:, 1], teacher_offsets[:, 1]
  s_group, t_group = np.zeros(len(s_ends), int), np.zeros(len(t_ends), int)
  s = t = count = 0
  while s < len(s_ends) and t < len(t_ends):
    s_group[s:], t_group[t:] = count, count
    move_s, move_t = s_ends[s] <= t_ends[t], s_ends[s] >= t_ends[t]
    s, t, count = s + move_s, t + move_t, count + (move_s and move_t)
  if move_s and move_t:  # whatever one side has left meets nothing on the other
    s_group[s:], t_group[t:] = count, count
    return s_group, t_group, count
  return s_group, t_group, count + 1


def gold(i, h):
  bayesian = h["uld_token_merge_strategy"] == "bayesian"
  mapping = np.asarray(i.vocab_map_t2s)
  teacher_ids = np.flatnonzero(mapping >= 0)
  student_ids = mapping[teacher_ids]

  def loss(student, teacher):
    q = jnp.exp(log_softmax(student["logits"], temperature=h["uld_student_temperature"]))
    p = jnp.exp(log_softmax(teacher["logits"], temperature=h["uld_teacher_temperature"]))
    if h["use_extended_uld"]:
      s_group, t_group, count = groups(student["offsets"], teacher["offsets"])
      merge = {"count": count, "base": "last" if bayesian else "first"}
      q = ct.merge_groups(q, student["ids"], s_group, **merge)
      p = ct.merge_groups(p, teacher["ids"], t_group, **merge)
    else:
      count = min(len(q), len(p))
      q, p = q[:count], p[:count]
    if not h["uld_use_hybrid_loss"]:
      return jnp.mean(ct.sorted_l1(q, p))
    return jnp.mean(
      ct.hybrid_uld(
        q,
        p,
        student_ids,
        teacher_ids,
        beta=h["beta"],
        matched_weight=h["uld_hybrid_matched_weight"],
        unmatched_weight=h["uld_hybrid_unmatched_weight"],
      )
    )

  names = ("uld_skip_student_eos", "uld_skip_teacher_eos")
  return h["uld_distillation_weight"] * per_sample(i, h, names, int(bayesian), loss)


def uld_baseline(i, h):
  where = i.attention_mask != 0
  return masked_mean(ct.uld(i.student_logits, i.teacher_logits, where=where), where)


def alm_loss(i, h):
  def side(name):
    logits, ids = getattr(i, f"{name}_logits"), getattr(i, f"{name}_ids")
    alignment = getattr(i, f"alignment_{name}") & getattr(i, f"loss_mask_{name}")[:, :, None]
    picked = token_log_probs(logits[:, :-1], ids[:, 1:])
    following = None
    if "append_space" in h["alm_mode"]:
      space = getattr(i, f"space_mask_{name}")
      following = jax.nn.logsumexp(jnp.where(space, log_softmax(logits), -jnp.inf), axis=-1)
    chunks = alm.chunk_log_likelihoods(
      jnp.pad(picked, [(0, 0), (1, 0)]), alignment, next_log_probs=following
    )
    return chunks, jnp.sum(alignment[:, 1:], axis=-2)

  (student, _), (teacher, count) = side("student"), side("teacher")
  tau = h["binarization_temp"]
  student, teacher = (jnp.where(count > 0, x, -1.0) for x in (student, teacher))
  difference = {
    "abs": lambda: alm.absolute_log(student, teacher),
    "abs_exp": lambda: alm.absolute(student, teacher, temperature=tau),
    "binary_ce": lambda: alm.binary_cross_entropy(student, teacher, temperature=tau),
    "binary_kl_temp_limit": lambda: alm.binary_kl_limit(student, teacher),
    "joschu_k2": lambda: alm.squared_log(student, teacher, temperature=tau),
    "joschu_k3": lambda: k3(teacher / tau, student / tau),
    "renyi": lambda: alm.renyi(student, teacher, alpha=h["renyi_alpha"]),
    "reverse_binary_kl": lambda: alm.reverse_binary_kl(student, teacher, temperature=tau),
  }[h["alm_diff_fn"]]()
  weight = {"token_count": count, "chunk_count": count > 0}
  by = jnp.mean(weight[h["distill_main_path_denominator"]])
  return jnp.mean(difference * weight[h["distill_main_path_numerator"]]) / by


def cross_entropy(i, h):
  where = i.attention_mask[:, 1:] != 0
  return -masked_mean(
    token_log_probs(i.student_logits[:, :-1], i.labels[:, 1:], where=where), where
  )


CASES = {
  "tokenkit_alm": alm_loss,
  "tokenkit_cross_entropy": cross_entropy,
  "tokenkit_uld_baseline": uld_baseline,
  "trl_gold_jsd_probs": lambda i, h: jnp.mean(
    ct.measure_js(i.student_probs, i.teacher_probs, beta=h["beta"])
  ),
  "trl_gold_uld": gold,
  "uld_official": uld_official,
}
