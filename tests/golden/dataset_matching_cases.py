"""Calls for the golden values of dataset distillation by matching, and of coreset selection.

The authors' networks take images NCHW and keep weights OIHW and [out, in].
"""

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.data import coresets, siamese
from distill_jax.losses import matching

constant = jax.lax.stop_gradient


def arrays(i, name):
  """The arrays NAME0, NAME1, ... of a case."""
  n = sum(key.startswith(name) and key[len(name) :].isdigit() for key in vars(i))
  return [jnp.asarray(getattr(i, f"{name}{k}")) for k in range(n)]


def convnet(params, x, norm):
  """Logits, and each block's maps before and after pooling."""
  maps = []
  *params, weight, bias = params
  per_block = 2 if norm == "none" else 4
  for start in range(0, len(params), per_block):
    pad = 3 if x.shape[1] == 1 and start == 0 else 1
    w, b, *affine = params[start : start + per_block]
    x = jax.lax.conv(x, w, (1, 1), [(pad, pad)] * 2) + b[:, None, None]
    if affine:
      x = normalize(x, (0, 2, 3) if norm == "batchnorm" else (2, 3), *affine)
    before = jnp.maximum(x, 0)
    h, w = (n // 2 * 2 for n in x.shape[2:])
    x = before[:, :, :h, :w].reshape(*x.shape[:2], h // 2, 2, w // 2, 2).mean((3, 5))
    maps.append((before, x))
  return x.reshape(len(x), -1) @ weight.T + bias, maps


def normalize(x, axes, scale, bias):
  mean, var = jnp.mean(x, axes, keepdims=True), jnp.var(x, axes, keepdims=True)
  return (x - mean) / jnp.sqrt(var + 1e-5) * scale[:, None, None] + bias[:, None, None]


def embed(params, x, norm):
  return convnet(params, x, norm)[1][-1][1].reshape(len(x), -1)


def cross_entropy(logits, labels):
  """Mean; labels are classes or probabilities."""
  if labels.ndim == 1:
    labels = jax.nn.one_hot(labels, logits.shape[1])
  return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), axis=1))


def grouped(n, num_classes):
  return jnp.repeat(jnp.arange(num_classes), n // num_classes)


def gradient_distance(synthetic, real, metric):
  if metric == "mse":
    return matching.squared_distance(synthetic, real)
  if metric == "cos":
    return matching.whole_cosine(synthetic, real)
  return matching.layerwise_cosine(synthetic, real, output_axis=0)


def dc_distance(i, h):
  return gradient_distance(arrays(i, "s"), arrays(i, "t"), h["dis_metric"])


def dc_gradient_matching(i, h):
  loss = lambda p, x, y: cross_entropy(convnet(p, x, h["net_norm"])[0], y)  # noqa: E731
  params = arrays(i, "p")
  real, synthetic = (
    jax.grad(loss)(params, x, y) for x, y in ((i.img_real, i.lab_real), (i.img_syn, i.lab_syn))
  )
  return gradient_distance(synthetic, real, h["dis_metric"])


def dm(i, h):
  classes = len(i.img_real)
  norm = "batchnorm" if h["batchnorm"] else "instancenorm"
  params, real = arrays(i, "p"), i.img_real.reshape(-1, *i.img_real.shape[2:])
  per_class = matching.distribution_matching(
    embed(params, i.image_syn, norm),
    embed(params, real, norm),
    synthetic_labels=grouped(len(i.image_syn), classes),
    real_labels=grouped(len(real), classes),
    num_classes=classes,
  )
  return jnp.sum(per_class)


def cafe(i, h):
  params = arrays(i, "p")
  classes = len(params[-1])
  _, synthetic = convnet(params, i.img_syn, "instancenorm")
  logits, real = convnet(params, i.img_real, "instancenorm")
  labels = dict(
    synthetic_labels=grouped(len(i.img_syn), classes),
    real_labels=grouped(len(i.img_real), classes),
    num_classes=classes,
  )
  layers = [(-1, 1, "first"), (-1, 0, "second"), (-2, 0, "third"), (-3, 0, "fourth")]
  middle = sum(
    h[f"{name}_weight"]
    * jnp.sum(matching.distribution_matching(synthetic[b][k], real[b][k], **labels))
    for b, k, name in layers
  )
  last = [maps[-1][1].reshape(len(maps[-1][1]), -1) for maps in (synthetic, real)]
  told = matching.discrimination(*last, **labels | dict(real_labels=i.lab_real))
  output = jnp.sum(matching.distribution_matching(*last, **labels))
  output += h["inner_weight"] * jnp.sum(told)
  plain = cross_entropy(logits, i.lab_real)
  return {
    "out": middle + plain + output,
    "out_loss_middle": middle,
    "out_loss_output": output,
    "out_loss_real": plain,
  }


def dsa(i, h):
  """The gradient is that of sum(cotangent * out)."""
  x = i.x.transpose(0, 2, 3, 1)
  first = (lambda u: u.ravel()[0]) if h["siamese"] else (lambda u: u.ravel())
  u = [first(jnp.asarray(r)) for r in arrays(i, "rand")]
  out = augmented(h["fn"].removeprefix("rand_"), x, u, h).transpose(0, 3, 1, 2)
  return constant(out) + i.cotangent * (out - constant(out))


def augmented(name, x, u, h):
  size = tuple(int(side * h["ratio_cutout"] + 0.5) for side in x.shape[1:3])
  r = h["ratio_scale"]
  call = dict(
    brightness=lambda: siamese.brightness(x, (u[0] - 0.5) * h["brightness"]),
    saturation=lambda: siamese.saturation(x, u[0] * h["saturation"]),
    contrast=lambda: siamese.contrast(x, u[0] + h["contrast"]),
    crop=lambda: siamese.crop(x, *u),
    cutout=lambda: siamese.cutout(x, *u, size=size),
    flip=lambda: siamese.flip(x, u[0] < h["prob_flip"]),
    scale=lambda: siamese.scale(x, *(v * (r - 1 / r) + 1 / r for v in u)),
    rotate=lambda: siamese.rotate(x, (u[0] - 0.5) * 2 * h["ratio_rotate"] / 180 * np.pi),
  )
  return call[name]()


def step_gradient(i, h):
  """(params, k) -> gradient of the k-th batch's loss."""
  images, labels = jnp.asarray(i.syn_images), jnp.asarray(i.labels)

  def loss(params, batch):
    return cross_entropy(convnet(params, images[batch], h["net_norm"])[0], labels[batch])

  return lambda params, k: jax.grad(loss)(params, i.indices[k])


def descend(params, gradient, lr):
  return jax.tree.map(lambda w, g: w - lr * g, params, gradient)


def mtt(i, h):
  start, gradient = arrays(i, "start"), step_gradient(i, h)
  params = start
  for k in range(h["steps"]):
    params = descend(params, gradient(params, k), i.syn_lr)
  return matching.trajectory_distance(params, start, arrays(i, "target"))


def tesla(i, h):
  """The authors lose the factor 2 of the images' gradient."""
  start, gradient = arrays(i, "start"), step_gradient(i, h)
  params, total = start, jax.tree.map(jnp.zeros_like, start)
  for k in range(h["steps"]):
    g = gradient(params, k)
    total = jax.tree.map(jnp.add, total, g)
    params = constant(descend(params, g, i.syn_lr))
  return matching.tesla(total, start, arrays(i, "target"), i.syn_lr, scale=0.5)


def vl_mtt(i, h):
  def encode(params, x):
    y = x @ params[0].T + params[1]
    return y / jnp.linalg.norm(y, axis=1, keepdims=True)

  def loss(image, text, batch):
    pairs = (encode(image, jnp.asarray(i.images)[batch]), encode(text, jnp.asarray(i.texts)[batch]))
    return jnp.mean(matching.contrastive(*pairs, scale=h["logit_scale"]))

  image, text = start = (i.img_w0, i.img_b0), (i.txt_w0, i.txt_b0)
  for k in range(h["steps"]):
    gradients = jax.grad(loss, argnums=(0, 1))(image, text, i.indices[k])
    image, text = descend(image, gradients[0], i.lr_img), descend(text, gradients[1], i.lr_txt)
  images = matching.trajectory_distance(image, start[0], (i.img_wT, i.img_bT))
  texts = matching.trajectory_distance(text, start[1], (i.txt_wT, i.txt_bT))
  return {"out": images + texts, "out_img_loss": images, "out_txt_loss": texts}


def ftd_gsam(i, h):
  """The gradient of `out` is to be GSAM's."""
  params = {name: jnp.asarray(getattr(i, name)) for name in ("w1", "b1", "w2", "b2")}

  def loss(p):
    hidden = jnp.tanh(i.x @ p["w1"].T + p["b1"])
    return cross_entropy(hidden @ p["w2"].T + p["b2"], i.labels)

  value, plain = jax.value_and_grad(loss)(params)
  worst = matching.gsam_ascent(params, plain, rho=h["rho"], adaptive=h["adaptive"])
  gradient = matching.gsam_gradient(plain, jax.grad(loss)(worst), alpha=h["gsam_alpha"])
  gradient = constant(gradient)
  moved = matching.dot(gradient, params)
  new = descend(params, gradient, h["lr"])
  return {"out": constant(value - moved) + moved} | {f"out_new_{k}": v for k, v in new.items()}


def herding(i, h):
  """DeepCore takes the farthest, and returns a mask's indices."""
  n = min(h["budget"], len(i.matrix))
  return {
    "out": jnp.sort(coresets.herding(i.matrix, n, farthest=True)),
    "out_welling_argmin": coresets.herding(i.matrix, n),
  }


def k_center(i, h):
  n = min(h["budget"], len(i.matrix) - len(i.already_selected))
  chosen = coresets.k_center(i.matrix, n, start=i.already_selected)
  return jnp.sort(jnp.concatenate([i.already_selected, chosen]))


def el2n_grand(i, h):
  def apply(params, x):
    return jax.nn.relu(x @ params[0] + params[1]) @ params[2] + params[3]

  def loss(params, x, y):
    return cross_entropy(apply(params, x)[None], y[None])

  params, y = (i.w1, i.b1, i.w2, i.b2), i.labels_onehot
  logits = apply(params, i.x)
  return {
    "out": coresets.error_norm(logits, y),
    "out_l1": coresets.error_norm(logits, y, order=1),
    "out_max_margin": coresets.margin(logits, y),
    "out_sum_margin": coresets.margin(logits, y, total=True),
    "out_grand": coresets.gradient_norm(loss, params, i.x, y),
  }


def forgetting(i, h):
  scores = coresets.forgetting_scores(i.correct)
  order = np.argsort(scores)  # as the authors do: NumPy's order of equals
  return {
    "out": scores[order],
    "out_order": order,
    "out_counts": scores,
    "out_presentations_to_learn": coresets.presentations_to_learn(i.correct),
    "out_first_learned": coresets.first_learned(i.correct),
  }


def forgetting_datadiet(i, h):
  never = np.flatnonzero(coresets.first_learned(i.correct) < 0)
  return {"out": coresets.forgetting_events(i.correct), "out_never_correct": never}


def pcoreset(i, h):
  mixed = {"alpha": h["alpha"], "beta": h["beta"]}
  p = coresets.two_heads(i.ce_out, i.kd_out, **mixed)
  if h["strategy"] == "uncertainty":
    return jnp.argsort(-coresets.entropy(p, epsilon=1e-10))[: h["queries"]]
  labelled = coresets.two_heads(i.labeled_ce, i.labeled_kd, **mixed)
  n, every = len(labelled), jnp.concatenate([labelled, p])
  return coresets.k_center(every, min(h["queries"], len(p)), start=np.arange(n)) - n


CASES = {
  "cafe": cafe,
  "dc_distance": dc_distance,
  "dc_gradient_matching": dc_gradient_matching,
  "dm": dm,
  "dsa": dsa,
  "el2n_grand": el2n_grand,
  "forgetting": forgetting,
  "forgetting_datadiet": forgetting_datadiet,
  "ftd_gsam": ftd_gsam,
  "herding": herding,
  "k_center": k_center,
  "mtt": mtt,
  "pcoreset": pcoreset,
  "tesla": tesla,
  "vl_mtt": vl_mtt,
}
