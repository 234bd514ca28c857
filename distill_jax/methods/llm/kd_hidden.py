"""Distillation of hidden states and attention relations, beside the divergence of the outputs.

  loss = D(p, q) + b sum_l |W_l h_S(l) - h_T(m(l))|^2 / D + c [R(query) + R(key) + R(value)] / 3

h(l) is the residual stream after layer l; student layers are paired with teacher layers at equal
depth, m(l) = (l + 1) L_T / L_S - 1. W_l is learned with the student and thrown away. R compares how
similar positions are in the last layer's queries, keys or values (`losses.features.relations`).

Paper: Romero et al., FitNets: Hints for Thin Deep Nets (arXiv:1412.6550), eq. 3.
Paper: Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding (arXiv:1909.10351),
  eq. 8.
Paper: Wang et al., MiniLMv2 (arXiv:2012.15828), eq. 5 to 7.
"""

import jax
import jax.numpy as jnp

from distill_jax import optim
from distill_jax.losses import divergences, features
from distill_jax.losses.linear_divergence import linear_divergence_sum
from distill_jax.method import Method, minimize
from distill_jax.models import student as student_lib


def make(config) -> Method:
  student, teacher = student_lib.model(config, "student"), student_lib.model(config, "teacher")
  tx = optim.make(config.optim, config.steps)
  divergence = divergences.named(**config.divergence.kind)
  init_student = student_lib.init(config, tx)
  method = config.method

  def init(key, pretrained):
    student_key, map_key = jax.random.split(key)
    state, frozen = init_student(student_key, pretrained)
    widths = [tree["final_norm"].shape[0] for tree in (state["student"], frozen["teacher"])]
    layers = jax.tree.leaves(state["student"]["layers"])[0].shape[0]
    maps = jax.random.normal(map_key, (layers, *widths)) / widths[0] ** 0.5
    trained = dict(student=state["student"], maps=maps)
    return dict(state, maps=maps, opt=tx.init(trained)), frozen

  def step(state, frozen, batch, key):
    def loss(params, batch, key):
      mask = batch["mask"]
      hidden, own = student_lib.hidden(student, params["student"], batch, features=True)
      target, theirs = student_lib.hidden(teacher, frozen["teacher"], batch, features=True)
      total, _ = linear_divergence_sum(
        divergence,
        hidden,
        student.head(params["student"]),
        target,
        teacher.head(frozen["teacher"]),
        weights=mask,
        chunk=config.divergence.chunk,
        student=student_lib.head(student),
        teacher=student_lib.head(teacher),
      )
      states = _states(params["maps"], own["residual"], theirs["residual"], mask)
      relation = _relations(own, theirs, method.relation_heads, batch)
      parts = dict(hidden=method.hidden * states, relation=method.relation * relation)
      count = jnp.sum(mask, dtype=jnp.float32)
      for value in parts.values():
        total += value
      return (total, count), {f"{name}_loss": (value, count) for name, value in parts.items()}

    trained = dict(student=state["student"], maps=state["maps"])
    trained, opt, metrics = minimize(
      tx, loss, trained, state["opt"], batch, key, microbatches=config.microbatches
    )
    averages = optim.ema_update(config.ema, state["ema"], trained["student"], state["step"])
    return dict(state, **trained, opt=opt, ema=averages, step=state["step"] + 1), metrics

  return Method(init, step)


def _states(maps, student, teacher, mask):
  """Sum over tokens of the distances of all student layers: maps [L, D, E], states [L, B, T, D] and
  [M, B, T, E]."""
  layers = len(student)
  pairs = [((i + 1) * len(teacher)) // layers - 1 for i in range(layers)]
  mapped = jnp.einsum("lbtd,lde->lbte", student, maps.astype(student.dtype))
  return jnp.sum(features.mean_squared(mapped, teacher[jnp.array(pairs)], where=mask[None]))


def _relations(student, teacher, heads, batch):
  """Sum over tokens of the relations' KL in the last layers, a mean over query, key and value."""
  order = jnp.arange(batch["mask"].shape[1])
  seen = (order[:, None] >= order)[None]
  if "segments" in batch:
    segments = batch["segments"][:, :-1]
    seen &= segments[:, :, None] == segments[:, None]
  total = jnp.float32(0)
  for name in ("query", "key", "value"):
    own, other = (x[name][-1].reshape(*batch["mask"].shape, -1) for x in (student, teacher))
    kl = features.relations(own, jax.lax.stop_gradient(other), heads=heads, where=seen)
    total += jnp.sum(jnp.where(batch["mask"], kl, 0)) / 3
  return total
