"""ResNet against its published size, a NumPy forward pass and the statistics of its data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models import resnet


def config(**changes):
  given = resnet.default_config()
  given.update(dict(widths=(4, 6), blocks=(1, 2), stem="small", num_classes=5) | changes)
  return given


def names(tree):
  paths = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in paths}


def test_resnet_18_has_11689512_parameters():
  given = resnet.default_config()
  shapes = jax.eval_shape(lambda key: resnet.init(given, (224, 224, 3), key), jax.random.key(0))
  learned = {n: x.size for n, x in names(shapes).items() if not n.endswith(("/mean", "/var"))}
  assert sum(learned.values()) == 11_689_512
  assert len(names(shapes)) - len(learned) == 2 * 20  # norms
  x = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
  logits, features, seen = jax.eval_shape(lambda p, x: resnet.observe(given, p, x), shapes, x)
  assert logits.shape == (2, 1000) and features.shape == (2, 512)
  assert [s.x.shape[1] for s in seen] == [112, *[56] * 4, *[28] * 5, *[14] * 5, *[7] * 5]


def convolve(kernel, x, stride):
  """As PyTorch's: half of the kernel as padding, then every stride-th place."""
  size, (h, w) = kernel.shape[0], x.shape[1:3]
  half = size // 2
  padded = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
  y = sum(padded[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(size) for j in range(size))
  return y[:, ::stride, ::stride]


def by_hand(params, x, stem_stride, of_batch):
  """Logits in float64, and mean and variance of each norm's input, in order."""
  met = []

  def unit(p, x, stride):
    x, norm = convolve(p["kernel"], x, stride), p["norm"]
    met.append((x.mean((0, 1, 2)), x.var((0, 1, 2)), x.size // x.shape[-1]))
    mean, var = met[-1][:2] if of_batch else (norm["mean"], norm["var"])
    return (x - mean) / np.sqrt(var + 1e-5) * norm["scale"] + norm["bias"]

  x = np.maximum(unit(params["stem"], x, stem_stride), 0)
  if stem_stride == 2:
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, w = x.shape[1:3]
    x = np.max([padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=0)
    x = x[:, ::2, ::2]
  for stage, blocks in enumerate(params["stages"]):
    for i, block in enumerate(blocks):
      stride = 2 if stage and not i else 1
      h = unit(block["second"], np.maximum(unit(block["first"], x, stride), 0), 1)
      x = np.maximum(h + (unit(block["skip"], x, stride) if "skip" in block else x), 0)
  return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"], met


def some(given, side):
  """Parameters with no statistic at its start, and images."""
  params = resnet.init(given, (side, side, 3), jax.random.key(0))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  moved = [x + 0.2 * jax.random.uniform(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
  return jax.tree.unflatten(tree, moved), jax.random.normal(jax.random.key(2), (3, side, side, 3))


@pytest.mark.parametrize("stem, side", [("small", 8), ("small", 7), ("imagenet", 17)])
@pytest.mark.parametrize("of_batch", [False, True])
def test_forward_is_the_formula(stem, side, of_batch):
  given = config(stem=stem)
  params, x = some(given, side)
  exact = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, x))
  expected, met = by_hand(*exact, 2 if stem == "imagenet" else 1, of_batch)
  close = dict(rtol=2e-4, atol=2e-5)
  if not of_batch:
    logits, _, seen = resnet.observe(given, params, x)
    assert len(seen) == len(met)
    for found, (mean, variance, _) in zip(seen, met, strict=True):
      np.testing.assert_allclose(found.x.mean((0, 1, 2)), mean, **close)
      np.testing.assert_allclose(found.x.var((0, 1, 2)), variance, **close)
  else:
    logits, _, new = resnet.train_apply(given, params, x)
    old, (mean, variance, n) = params["stem"]["norm"], met[0]
    norm = new["stem"]["norm"]
    np.testing.assert_allclose(norm["mean"], 0.9 * old["mean"] + 0.1 * mean, **close)
    np.testing.assert_allclose(
      norm["var"], 0.9 * old["var"] + 0.1 * variance * n / (n - 1), **close
    )
    for name, leaf in names(new).items():
      if not name.endswith(("/mean", "/var")):
        np.testing.assert_array_equal(leaf, names(params)[name])
  np.testing.assert_allclose(logits, expected, **close)


def test_running_statistics_arrive_at_those_of_the_data_and_the_two_passes_agree():
  given = config()
  params, x = some(given, 8)
  x = jnp.concatenate([x, 3 * x + 1] * 8)

  def step(params, _):
    logits, _, params = resnet.train_apply(given, params, x)
    return params, logits

  params, logits = jax.lax.scan(step, params, length=200)
  np.testing.assert_allclose(resnet.apply(given, params, x)[0], logits[-1], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("stem", resnet.STEMS)
def test_no_gradient_reaches_statistics_and_a_nan_does_not_enter_them(stem):
  given = config(stem=stem)
  params, x = some(given, 16)
  for forward in (resnet.apply, resnet.train_apply):
    gradient = jax.jit(jax.grad(lambda p, f=forward: jnp.sum(f(given, p, x)[0] ** 2)))(params)
    for name, leaf in names(gradient).items():
      assert bool(jnp.any(leaf != 0)) != name.endswith(("/mean", "/var")), name
  new = resnet.train_apply(given, params, x.at[0, 0, 0, 0].set(jnp.nan))[2]
  jax.tree.map(np.testing.assert_array_equal, new, params)


@pytest.mark.parametrize("changes, message", [
  (dict(stem="large"), "no stem"), (dict(blocks=(1,)), "2 widths for 1 stages")
])  # fmt: skip
def test_refusals(changes, message):
  with pytest.raises(ValueError, match=message):
    resnet.init(config(**changes), (8, 8, 1), jax.random.key(0))
