"""Calls for the golden values of decoupled distillation: recovered images, stored labels."""

import jax
import jax.numpy as jnp

from distill_jax.losses import recovery, soft_labels


def last(images):
  return jnp.moveaxis(images, 1, -1)


def first(images):
  return jnp.moveaxis(images, -1, 1)


def teacher(i, x, prefix=""):
  """Logits and the batch norms' distances of k x [3x3 convolution, BN eval, ReLU], GAP, Linear."""
  p = {n.removeprefix(prefix): a for n, a in vars(i).items() if n.startswith(prefix)}
  distances, k = [], 0
  while f"conv{k}_w" in p:
    x = jax.lax.conv(x, p[f"conv{k}_w"], (1, 1), "SAME") + p[f"conv{k}_b"][:, None, None]
    scale, bias, mean, var = (p[f"bn{k}_{n}"] for n in ("w", "b", "mean", "var"))
    distances.append(recovery.batch_norm_distance(last(x), mean, var))
    x = jax.nn.relu(first((last(x) - mean) * scale / jnp.sqrt(var + 1e-5) + bias))
    k += 1
  return jnp.mean(x, axis=(2, 3)) @ p["fc_w"].T + p["fc_b"], distances


def sre2l(i, h):
  logits, distances = teacher(i, i.inputs)
  total = recovery.batch_norm_total(distances, first=h["first_bn_multiplier"])
  images = last(i.inputs)
  variation, size = recovery.total_variation(images), jnp.mean(recovery.image_norm(images))
  loss = recovery.recovery(logits, i.targets, total, r_bn=h["r_bn"])
  return {
    "out": loss + h["tv_l2"] * variation + h["l2_scale"] * size,
    "out_loss_ce": recovery.cross_entropy(logits, i.targets),
    "out_r_bn": total,
    "out_tv_l2": variation,
    "out_tv_l1": recovery.total_variation(images, order=1),
    "out_l2": size,
  }


def cv_dd(i, h):
  temperature = jnp.inf if h["voter_type"] == "equal" else h["weight_temperature"]
  weights = recovery.committee_weights(i.prior, temperature=temperature)
  losses, entropies, totals = [], [], []
  for m in range(len(i.prior)):
    logits, distances = teacher(i, i.inputs, f"m{m}_")
    totals.append(recovery.batch_norm_total(distances, first=h["first_bn_multiplier"]))
    entropies.append(recovery.cross_entropy(logits, i.targets))
    losses.append(recovery.recovery(logits, i.targets, totals[-1], r_bn=h["r_bn"]))
  return {
    "out": recovery.committee(jnp.stack(losses), weights),
    "out_weights": weights,
    "out_ce": jnp.stack(entropies),
    "out_bn": jnp.stack(totals),
  }


def cda(i, h):
  return recovery.least_crop(
    i.iteration, steps=h["iterations"], mode=h["mode"], milestone=h["milestone"]
  )


def fkd(i, h):
  kind = h["label_type"]
  if kind == "hard":
    index, value = i.label[:, None], jnp.ones((len(i.label), 1))
  elif kind == "smoothing":
    index, value = i.label[:, :1], i.label[:, 1:2]  # a third column is not read
  else:
    index, value = i.label[:, 0], i.label[:, 1]
  labels = soft_labels.expanded(
    index.astype(int),
    value,
    num_classes=h["n_classes"],
    renormalize=kind == "marginal_renorm",
  )
  loss = jnp.mean(soft_labels.cross_entropy(i.model_output, labels))
  return {"out": loss, "out_soft_label": labels}


def mixup(i, h):
  return {
    "out": soft_labels.mixed(i.images, i.images[i.perm], h["lam"]),
    "out_soft_label": soft_labels.mixed(i.soft_label, i.soft_label[i.perm], h["lam"]),
  }


def cutmix(i, h):
  """The authors call the rows' axis W and its center cx."""
  size = i.images.shape[2:]
  box = soft_labels.cut_box((h["cx"], h["cy"]), h["lam"], size=size)
  share = soft_labels.kept_share(box, size=size)
  images = last(i.images)
  return {
    "out": first(soft_labels.pasted(images, images[i.perm], box)),
    "out_soft_label": soft_labels.mixed(i.soft_label, i.soft_label[i.perm], share),
  }


def pruned(i, h):
  """T^2 for Tiny-ImageNet alone."""
  temperature = h["temperature"]
  loss = soft_labels.stored_kl(
    i.output, i.soft_label, temperature=temperature, shrink=h["label_smoothing"]
  )
  return jnp.mean(loss) * (temperature**2 if h["dataset"] == "tiny" else 1)


CASES = {
  "cda_schedule": cda,
  "cv_dd": cv_dd,
  "fkd": fkd,
  "fkd_cutmix": cutmix,
  "fkd_mixup": mixup,
  "soft_label_pruning_kd": pruned,
  "sre2l": sre2l,
}
