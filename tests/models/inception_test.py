"""Inception of FID: against pytorch-fid's own network, its resize by hand, and files that are not
what they should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from distill_jax.config import ConfigError
from distill_jax.models import inception


@pytest.fixture(scope="module")
def tensors():
  """Random weights that keep the size of activations."""
  rng, found = np.random.default_rng(0), {}
  for name, shape in inception.shapes().items():
    if name.endswith("conv.weight"):
      value = rng.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5
    elif name.endswith(("bn.weight", "running_var")):
      value = rng.uniform(0.5, 1.5, shape)
    else:
      value = 0.2 * rng.normal(size=shape)
    found[name] = value.astype(np.float32)
  return found


def test_names_and_shapes():
  shapes = inception.shapes()
  assert len(shapes) == 94 * 5  # kernel, scale, bias, mean and variance
  assert sum(np.prod(shape) for name, shape in shapes.items() if "conv" in name) == 21_751_136
  assert shapes["Mixed_6b.branch7x7_2.conv.weight"] == (128, 128, 1, 7)
  assert shapes["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)


def test_features_have_the_published_width_from_any_image():
  kernels = inception._kernels()
  params = {
    name: dict(kernel=jax.ShapeDtypeStruct(k, "float32"), bias=jax.ShapeDtypeStruct(k[-1:], "f4"))
    for name, k in kernels.items()
  }
  for shape in ((3, 8, 8, 1), (1, 320, 310, 3)):
    images = jax.ShapeDtypeStruct(shape, "float32")
    assert jax.eval_shape(inception.features, params, images).shape == (shape[0], 2048)
  with pytest.raises(ValueError, match="images of 4 channels"):
    inception.features({}, jnp.zeros((1, 8, 8, 4)))


@pytest.mark.parametrize("side", [2, 8, 400])
def test_resize_is_linear_between_centres_and_flat_beyond(side):
  """x rises by 1 from a pixel to the next, so the value is the clipped place itself."""
  ramp = jnp.broadcast_to(jnp.arange(side, dtype=jnp.float32)[None, None, :, None], (1, 4, side, 1))
  place = (np.arange(299) + 0.5) * side / 299 - 0.5
  resized = inception.resize(ramp)[0, :, :, 0]
  expected = np.broadcast_to(np.clip(place, 0, side - 1), (299, 299))
  np.testing.assert_allclose(resized, expected, atol=1e-3)


def test_norms_are_folded(tensors, tmp_path):
  save_file(tensors, tmp_path / "a.safetensors")
  params = inception.load(str(tmp_path / "a.safetensors"))
  name, x = "Mixed_5b.branch1x1", np.random.default_rng(1).normal(size=192)
  scale, bias, mean, variance = (tensors[f"{name}.bn.{part}"] for part in inception.NORM)
  y = (tensors[f"{name}.conv.weight"][:, :, 0, 0] @ x - mean) / np.sqrt(variance + 1e-3)
  ours = x @ params[name]["kernel"][0, 0] + params[name]["bias"]
  np.testing.assert_allclose(ours, y * scale + bias, rtol=1e-4, atol=1e-5)


def test_a_pool_leaves_out_its_padding():
  np.testing.assert_allclose(inception._mean_pool(jnp.ones((1, 3, 4, 2))), 1.0, rtol=1e-6)
  np.testing.assert_allclose(inception._max_pool_padded(-jnp.ones((1, 3, 3, 1))), -1.0)


def test_other_files_are_refused_in_one_line(tmp_path):
  file, name = tmp_path / "a.safetensors", "Conv2d_1a_3x3.conv.weight"
  remedy = r"convert pytorch-fid's pt_inception.*docs/diffusion\.md"
  for write, says in (
    (lambda: None, "no file"),
    (lambda: file.write_bytes(b"\x80\x02pickle"), "not a whole safetensors file"),
    (lambda: save_file({"fc.bias": np.zeros(3, "f4")}, file), f"a.safetensors: no tensor '{name}'"),
    (
      lambda: save_file({name: np.zeros((32, 3, 5, 5), "f4")}, file),
      rf"'{name}' has shape \[32, 3, 5, 5\], not \[32, 3, 3, 3\]",
    ),
  ):
    write()
    with pytest.raises(ConfigError, match=f"{says}.*{remedy}") as error:
      inception.load(str(file))
    assert "\n" not in str(error.value)


def test_features_are_those_of_pytorch_fid(tensors, tmp_path, monkeypatch):
  torch = pytest.importorskip("torch")
  # a torchvision that was built for another torch raises a RuntimeError
  theirs = pytest.importorskip("pytorch_fid.inception", exc_type=(ImportError, RuntimeError))
  head = {"fc.weight": np.zeros((1008, 2048), "f4"), "fc.bias": np.zeros(1008, "f4")}
  given = {name: torch.from_numpy(value) for name, value in (tensors | head).items()}
  monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: given)
  network = theirs.InceptionV3().eval()  # loads strictly: our names are theirs
  save_file(tensors, tmp_path / "a.safetensors")
  params = inception.load(str(tmp_path / "a.safetensors"))
  of = jax.jit(inception.features)
  for shape in ((2, 32, 32, 3), (1, 320, 310, 3)):
    x = np.random.default_rng(1).integers(0, 256, shape).astype(np.float32) / 255
    with torch.no_grad():
      expected = network(torch.from_numpy(x.transpose(0, 3, 1, 2)))[0][:, :, 0, 0].numpy()
    ours = np.asarray(of(params, 2 * x - 1))
    assert expected.std() > 1e-2  # alive
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
