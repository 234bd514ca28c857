"""Students that train low-rank factors alone, and teachers with int8 weights.

With `lora_rank` r in config.models.student each matrix W of a layer gets factors, and a layer works
with W + (alpha / r) A B; A begins random, B at 0, so that training begins from the model that was
loaded. Everything else is held: no gradient, no moments of the optimiser.

  query_a [L, D, r], query_b [L, r, H, K], and likewise for each name in MATRICES

With `weights` = "int8" the matrices of the layers are int8 with a scale for each output:
query [L, D, H, K] int8, query_scale [L, 1, H, K]. Norms, biases, embeddings and head stay as they
are. Products take the dtype of the activations.

qwix quantises the arrays. Its interception of modules, for LoRA as for int8, finds products by the
paths of modules as they run; our layers are one stack of arrays under a scan, to which it does not
apply, so factors and products are written here and in block.py.

References:
  Hu et al., LoRA: Low-Rank Adaptation of Large Language Models (arXiv:2106.09685), section 4.1.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from distill_jax.config import ConfigError

MATRICES = dict(query=1, key=1, value=1, output=2, gate=1, up=1, down=1)  # name: axes of its input


def is_factor(path: Any) -> bool:
  """Whether the path of a parameter is that of a factor."""
  name = jax.tree_util.keystr(path[-1:], simple=True)
  return name[-2:] in ("_a", "_b") and name[:-2] in MATRICES


def held(params: Any) -> Any:
  """Parameters of which factors alone have a gradient."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x if is_factor(path) else jax.lax.stop_gradient(x), params
  )


def of_factors(config, tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """The optimiser of a student: where it has factors, of these alone."""
  if not config.models.student.lora_rank:
    return tx

  def labels(params):
    return jax.tree_util.tree_map_with_path(
      lambda path, _: "learned" if is_factor(path) else "held", params
    )

  return optax.multi_transform(dict(learned=tx, held=optax.set_to_zero()), labels)


def with_factors(params: Any, fresh: Any) -> Any:
  """Loaded parameters, with the factors of newly made ones."""
  factors = {name: x for name, x in fresh["layers"].items() if name[-2:] in ("_a", "_b")}
  return dict(params, layers=dict(params["layers"], **factors))


def merged(params: Any, arch) -> Any:
  """Parameters with the factors multiplied into their matrices."""
  layers = dict(params["layers"])
  for name in MATRICES:
    if f"{name}_a" not in layers:
      continue
    a, b = layers.pop(f"{name}_a"), layers.pop(f"{name}_b")
    product = jnp.einsum("l...r,lrx->l...x", a, b.reshape(*b.shape[:2], -1))
    add = arch.lora_alpha / arch.lora_rank * product.reshape(layers[name].shape)
    layers[name] = (layers[name].astype(jnp.float32) + add).astype(layers[name].dtype)
  return dict(params, layers=layers)


def int8(layers: dict[str, Any]) -> dict[str, Any]:
  """Layers with their matrices quantised: the nearest of 255 steps up to the largest entry of each
  output."""
  try:
    import qwix
  except ImportError:
    raise ConfigError("weights 'int8' need: pip install 'distill_jax[pretrained]'.") from None
  layers = dict(layers)
  for name, inputs in MATRICES.items():
    if name in layers:
      outputs = [0, *range(1 + inputs, layers[name].ndim)]
      stored = qwix.quantize(layers[name].astype(jnp.float32), jnp.int8, channelwise_axes=outputs)
      layers[name], layers[f"{name}_scale"] = stored.qvalue, stored.scale
  return layers
