"""Low-rank factors: each shape against its product, nothing at birth, and only they learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import export, train
from distill_jax.diffusion import network
from distill_jax.models import adapters, pretrained
from distill_jax.models.unet import convolve

PARAMS = dict(
  plain=dict(kernel=jnp.ones((3, 4)), bias=jnp.zeros(4)),
  layers=dict(kernel=jnp.ones((2, 3, 4)), bias=jnp.zeros((2, 4))),
  blocks=[dict(kernel=jnp.ones((3, 3, 2, 4)), bias=jnp.zeros(4))],
)
RANK = "models.student.lora_rank=2"


def born(pattern="kernel$", rank=2):
  return adapters.init(PARAMS, jax.random.key(0), rank, pattern)


def shaken(factors):
  return jax.tree.map(lambda x: x + 0.5, factors)


def test_factors_have_their_shapes_and_change_nothing_at_birth():
  factors = born()
  assert jax.tree.map(jnp.shape, factors) == {
    "plain/kernel": dict(a=(3, 2), b=(2, 4)),
    "layers/kernel": dict(a=(2, 3, 2), b=(2, 2, 4)),
    "blocks/0/kernel": dict(a=(3, 3, 2, 2), b=(2, 4)),
  }
  jax.tree.map(np.testing.assert_array_equal, adapters.merge(PARAMS, factors), PARAMS)


def test_merged_kernels_are_the_sums():
  factors = shaken(born())
  merged = adapters.merge(PARAMS, factors, 0.5)
  a, b = factors["plain/kernel"].values()
  np.testing.assert_allclose(merged["plain"]["kernel"], 1 + 0.5 * a @ b, rtol=1e-5)
  a, b = factors["layers/kernel"].values()
  each = np.stack([1 + 0.5 * a[i] @ b[i] for i in range(2)])
  np.testing.assert_allclose(merged["layers"]["kernel"], each, rtol=1e-5)
  np.testing.assert_array_equal(merged["layers"]["bias"], PARAMS["layers"]["bias"])
  # of a convolution: one to two channels, then one of 1 x 1
  a, b = factors["blocks/0/kernel"].values()
  x, before = jax.random.normal(jax.random.key(1), (1, 5, 5, 2)), PARAMS["blocks"][0]
  inner = convolve(dict(kernel=a, bias=jnp.zeros(2)), x) @ b
  want = convolve(before, x) + 0.5 * inner
  np.testing.assert_allclose(convolve(merged["blocks"][0], x), want, rtol=1e-4, atol=1e-5)


def test_the_pattern_chooses():
  assert set(born("^layers|blocks")) == {"layers/kernel", "layers/bias", "blocks/0/kernel"}
  with pytest.raises(ValueError, match="no kernel matches the pattern 'attention'"):
    born("attention")


@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_an_adapted_network_begins_as_its_teacher_and_only_factors_have_a_gradient(name):
  config = config_lib.load("experiments/diffusion/denoising.py:smoke", (RANK,))
  shape = (2,) if name == "mlp" else (4, 4, 1)
  config.data.shape, config.models.student.name = shape, name
  config.models.student.multipliers, config.models.student.attention = (1,), ()
  config.models.teacher.update(config.models.student)
  config.models.teacher.lora_rank = 0
  teacher, student = (network.make(config, n) for n in ("teacher", "student"))
  of_teacher = jax.jit(teacher.init)(jax.random.key(1))
  params = network.params(config, "student", jax.random.key(0), dict(teacher=of_teacher))
  assert set(params) == {"base", "factors"}
  x, sigma = jax.random.normal(jax.random.key(2), (2, *shape)), jnp.array([0.5, 2.0])

  @jax.jit
  def compare(params, of_teacher):
    ours, theirs = (
      network.denoise(net, p, x, sigma) for net, p in ((student, params), (teacher, of_teacher))
    )
    return ours, theirs, jax.grad(lambda p: network.denoise(student, p, x, sigma).sum())(params)

  ours, theirs, grads = compare(params, of_teacher)
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
  assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(grads["base"]))
  last = grads["factors"]["outputs/kernel"]["b"]
  assert float(jnp.abs(last).max()) > 0
  # one that was adapted before goes on
  again = network.params(config, "student", jax.random.key(5), dict(start=shaken(params)))
  jax.tree.map(np.testing.assert_array_equal, again, shaken(params))


@pytest.mark.slow
def test_a_run_leaves_the_base_and_its_export_is_merged(tmp_path):
  config = config_lib.load("experiments/diffusion/denoising.py:smoke", (RANK, "evals=()"))
  train.run(config, tmp_path / "run")
  for tree in ("student", "student.base"):
    export.export(tmp_path / "run", tmp_path / tree, tree=tree, dtype="float32")
  whole, base = (pretrained.load(str(tmp_path / tree)) for tree in ("student", "student.base"))
  assert jax.tree.structure(whole) == jax.tree.structure(base)
  assert not np.array_equal(whole["layers"]["first"]["kernel"], base["layers"]["first"]["kernel"])
  np.testing.assert_array_equal(whole["outputs"]["bias"], base["outputs"]["bias"])
  with_factors = network.make(config, "student").init
  keys = jax.random.split(jax.random.split(jax.random.key(config.seed))[0], 2)
  fresh = with_factors(keys[0])["base"]  # as players.start splits
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), base, fresh)
