"""Calls for the golden values of kernel-based and of decoupled dataset distillation."""

import jax
import jax.numpy as jnp
from dataset_recovery_cases import CASES as RECOVERY

from distill_jax.losses import implicit, infinite_width, kernels


def kip(i, h):
  y_s = i.y_support if h["learn_labels"] else jax.lax.stop_gradient(i.y_support)
  if h["kernel"] == "rbf":
    gamma = h["depth_or_gamma"]
    k_ss = kernels.rbf(i.x_support, i.x_support, gamma=gamma)
    k_ts = kernels.rbf(i.x_target, i.x_support, gamma=gamma)
  else:
    depth = h["depth_or_gamma"]
    k_ss = infinite_width.fully_connected(i.x_support, depth=depth).ntk
    k_ts = infinite_width.fully_connected(i.x_target, i.x_support, depth=depth).ntk
  ridge = kernels.relative_ridge(k_ss, h["reg"])
  return {
    "out": kernels.kip(k_ss, k_ts, y_s, i.y_target, ridge=ridge),
    "out_acc": accuracy(kernels.predict(k_ss, k_ts, y_s, ridge=ridge), i.y_target),
    "out_k_ss": k_ss,
    "out_k_ts": k_ts,
    "out_label_solve": kernels.label_solve(k_ss, k_ts, i.y_target, ridge=ridge),
  }


def accuracy(prediction, labels):
  return jnp.mean(jnp.argmax(prediction, 1) == jnp.argmax(labels, 1), dtype=labels.dtype)


def frepo(i, h):
  """The authors' loss adds the margin of the labels."""
  features, labels, target = i.feat_proto, i.y_proto, i.feat_target
  kernel_loss = kernels.frepo(features, target, labels, i.y_target, scale=h["reg"])
  label_loss = kernels.label_margin(labels, most=1 / labels.shape[1])
  k_ss, k_ts = kernels.linear(features, features), kernels.linear(target, features)
  ridge = kernels.relative_ridge(k_ss, h["reg"])
  return {
    "out": kernel_loss + label_loss,
    "out_pred": kernels.predict(k_ss, k_ts, labels, ridge=ridge),
    "out_kernel_loss": kernel_loss,
    "out_label_loss": label_loss,
  }


def krr_st(i, h):
  embed = lambda x: jax.nn.relu(x @ i.w1.T + i.b1) @ i.w2.T + i.b2  # noqa: E731
  synthetic, real = embed(i.x_syn), embed(i.x_real)
  return {
    "out": kernels.krr_st(synthetic, real, i.y_syn, i.y_real),
    "out_inner_loss": jnp.mean(jnp.square(synthetic @ i.wo.T + i.bo - i.y_syn)),
  }


def tanh_net(p, x):
  hidden = jnp.tanh(x.reshape(len(x), -1) @ p["w1"] + p["b1"])
  return hidden @ p["w2"] + p["b2"], hidden


def linearised(base, tangent, x):
  """Features at the base parameters, and the outputs' change along the tangent ones."""
  base = jax.lax.stop_gradient(base)
  (_, features), (outputs, _) = jax.jvp(lambda p: tanh_net(p, x), (base,), (tangent,))
  return features, outputs


def rcig(i, h):
  base, tangent = (
    {name: getattr(i, f"{kind}_{name}") for name in ("b1", "b2", "w1", "w2")}
    for kind in ("base", "tangent")
  )
  coreset = {name: getattr(i, name) for name in ("x_proto", "y_proto", "log_temp")}
  ridge, most = h["l2"], 1 / (2 * i.y_target.shape[1])

  def predict(coreset, base, tangent):
    support = (*linearised(base, tangent, coreset["x_proto"]), coreset["y_proto"])
    target = linearised(base, tangent, i.x_target)
    return kernels.rcig_outer_prediction(*support, *target, ridge=ridge)

  def outer(coreset, base, tangent):
    prediction = predict(coreset, base, tangent)
    loss = kernels.rcig_outer(prediction, i.y_target, coreset["log_temp"])
    return loss + kernels.label_margin(coreset["y_proto"], most=most)

  def inner(coreset, tangent):
    features, outputs = linearised(base, tangent, coreset["x_proto"])
    square = implicit.inner_product(tangent, tangent)
    return kernels.rcig_inner(features, outputs, coreset["y_proto"], square, ridge=ridge)

  loss, (direct, base_gradient, gradient) = jax.value_and_grad(outer, (0, 1, 2))(
    coreset, base, tangent
  )
  v, residuals = implicit.inverse_hessian_product(
    lambda tangent: inner(coreset, tangent),
    tangent,
    gradient,
    steps=h["hinv_steps"],
    learning_rate=h["hinv_lr"],
  )
  indirect = implicit.implicit_gradient(inner, coreset, tangent, v)
  if h["clip"]:
    indirect = implicit.limit_norms(indirect, direct)
  outputs = linearised(base, tangent, coreset["x_proto"])[1]
  square = implicit.inner_product(tangent, tangent)
  trees = {
    "gt": gradient,
    "gt_base": base_gradient,
    "direct": direct,
    "hinvvp": v,
    "implicit": indirect,
    "total": jax.tree.map(jnp.add, direct, indirect),
  }
  return {
    "out": loss,
    "out_acc": accuracy(predict(coreset, base, tangent), i.y_target),
    "out_inner_loss": inner(coreset, tangent),
    "out_inner_l2_loss": kernels.rcig_finite(outputs, coreset["y_proto"], square, ridge=ridge),
    "out_residuals": residuals,
    **{f"out_{kind}_{name}": a for kind, tree in trees.items() for name, a in tree.items()},
  }


CASES = {"frepo": frepo, "kip": kip, "krr_st": krr_st, "rcig": rcig, **RECOVERY}
