"""The folder of a distilled set: there and back, what is refused, and the command line."""

import json

import jax
import numpy as np
import pytest

from distill_jax import config as config_lib
from distill_jax import train
from distill_jax.config import ConfigError
from distill_jax.data import image_set
from distill_jax.distilled import artifact, preprocessing


def dataset(kind="hard", preprocess="standardize", lr=None, seed=0):
  """Three classes of two images."""
  rng = np.random.default_rng(seed)
  x = rng.uniform(-1, 1, size=(6, 4, 4, 2)).astype(np.float32)
  arrays = preprocessing.fit(preprocess, rng.uniform(-1, 1, (50, 4, 4, 2)).astype(np.float32))
  shapes = dict(logits=(6, 3), regression=(6, 3), per_epoch=(5, 6, 3))
  hard = np.repeat(np.arange(3, dtype=np.int32), 2)
  labels = hard if kind == "hard" else rng.normal(size=shapes[kind]).astype(np.float32)
  images = preprocessing.apply(arrays, x)
  protocol = dict(epochs=3, augment=["color"])
  return artifact.DistilledDataset(images, labels, kind, lr, arrays, protocol, dict(step=7))


@pytest.mark.parametrize("kind", artifact.KINDS)
@pytest.mark.parametrize("preprocess, lr", [("none", None), ("standardize", 0.02), ("zca", None)])
def test_there_and_back(tmp_path, kind, preprocess, lr):
  given = dataset(kind, preprocess, lr)
  artifact.save(tmp_path / "set", given)
  back = artifact.load(tmp_path / "set", expect=given.preprocessing)
  for name in ("images", "labels"):
    got, want = getattr(back, name), getattr(given, name)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)
  assert set(back.preprocessing) == set(given.preprocessing)
  for name, x in given.preprocessing.items():
    np.testing.assert_array_equal(back.preprocessing[name], x)
  assert back.label_kind == kind and back.protocol == given.protocol
  assert back.lr == (None if lr is None else pytest.approx(lr))
  assert back.provenance["step"] == 7 and len(back.provenance["sha256"]["images"]) == 64
  artifact.save(tmp_path / "again", back)  # the same bits
  for name in ("set.safetensors", "set.json", "set.png"):
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "set" / name).read_bytes()


def edited(file, change):
  stored = json.loads(file.read_text())
  change(stored)
  file.write_text(json.dumps(stored))


def flipped(folder):
  data = bytearray((folder / "set.safetensors").read_bytes())
  data[-5] ^= 1
  (folder / "set.safetensors").write_bytes(bytes(data))


def truncated(folder):
  data = (folder / "set.safetensors").read_bytes()
  (folder / "set.safetensors").write_bytes(data[:-8])


def in_json(change):
  return lambda folder: edited(folder / "set.json", change)


def foreign_arrays(folder):
  artifact.save(folder / "other", dataset(seed=1))
  (folder / "other" / "set.safetensors").replace(folder / "set.safetensors")


@pytest.mark.parametrize(
  "damage, says",
  [
    (flipped, "sha256 of .* is .*, set.json says"),
    (truncated, "not a whole safetensors file"),
    (foreign_arrays, "sha256 of .* is .*, set.json says"),
    (lambda f: (f / "set.safetensors").unlink(), "No file .*set.safetensors"),
    (lambda f: (f / "set.json").unlink(), "No file .*set.json"),
    (lambda f: (f / "set.json").write_text("{"), "is not JSON"),
    (in_json(lambda s: s.pop("arrays")), "has no 'arrays'"),
    (in_json(lambda s: s.update(format=2)), "format is 2, this version reads 1"),
    (in_json(lambda s: s["arrays"]["images"].update(shape=[6])), "shape of images is"),
    (in_json(lambda s: s["arrays"]["labels"].update(dtype="int64")), "dtype of labels is int32"),
    (in_json(lambda s: s["arrays"].pop("labels")), "labels is not in both files"),
    (in_json(lambda s: s["arrays"].update(images=3)), "arrays are not described"),
    (in_json(lambda s: s.update(label_kind="soft")), "label_kind is 'soft', one of hard,"),
    (in_json(lambda s: s.update(label_kind="logits")), "labels of logits are not float32"),
    (in_json(lambda s: s.update(preprocessing="zca")), "preprocessing is 'zca' in set.json"),
  ],
)
def test_a_damaged_set_is_refused_in_one_line(tmp_path, damage, says):
  artifact.save(tmp_path, dataset())
  damage(tmp_path)
  with pytest.raises(ConfigError, match=says) as error:
    artifact.load(tmp_path)
  assert "\n" not in str(error.value)


def test_another_preprocessing_is_refused_with_a_remedy(tmp_path):
  given = dataset()
  artifact.save(tmp_path, given)
  artifact.load(tmp_path, expect={k: v * (1 + 1e-5) for k, v in given.preprocessing.items()})
  with pytest.raises(ConfigError, match=r"'standardize', these images have 'none': set data\.pre"):
    artifact.load(tmp_path, expect={})
  other = dict(given.preprocessing, mean=given.preprocessing["mean"] + 0.1)
  with pytest.raises(ConfigError, match=r"preprocessing\.mean is not that of these images.*conv"):
    artifact.load(tmp_path, expect=other)
  zca = dataset(preprocess="zca").preprocessing
  converted = artifact.converted(artifact.load(tmp_path), zca)
  artifact.save(tmp_path, converted)
  back = artifact.load(tmp_path, expect=zca)
  pixels = [preprocessing.invert(s.preprocessing, s.images) for s in (back, given)]
  np.testing.assert_allclose(*pixels, atol=1e-4)


@pytest.mark.parametrize(
  "changes, says",
  [
    (dict(images=np.zeros((6, 4, 4), np.float32)), r"images are not float32 \[N, H, W, C\]"),
    (dict(images=np.full((6, 4, 4, 2), np.nan, np.float32)), "images are not all finite"),
    (dict(labels=np.zeros(5, np.int32)), "labels are of 5 images, there are 6"),
    (dict(labels=np.full(6, -1, np.int32)), "labels are not all classes"),
    (dict(lr=-0.1), "lr is -0.1, not a positive number"),
    (dict(preprocessing=dict(mean=np.zeros(2, np.float32))), "preprocessing is"),
    (
      dict(preprocessing=dict(mean=np.zeros(2, np.float32), std=np.ones(3, np.float32))),
      r"preprocessing\.std is float32\[3\], not float32\[2\]",
    ),
  ],
)
def test_parts_that_do_not_belong_together_are_not_saved(tmp_path, changes, says):
  with pytest.raises(ConfigError, match=says):
    artifact.save(tmp_path, dataset()._replace(**changes))


def main(*argv) -> int:
  return artifact.main([str(a) for a in argv])


def state_of(run):
  """The student that the run ended with: the same steps once more."""
  config = config_lib.load_saved(run)
  mesh = train.make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    program = train.build(config, mesh)
    state, frozen = program.init(program.keys[0], program.pretrained)
    for t in range(config.steps):
      state, _ = program.step(state, frozen, {}, jax.random.fold_in(program.keys[1], t))
    return jax.device_get(state["student"])


@pytest.mark.parametrize("name", ["dm", "selection"])
def test_a_run_becomes_a_set(tmp_path, capsys, name):
  config = config_lib.load(f"experiments/dataset/{name}.py:smoke,ipc=2", ("evals=()",))
  train.run(config, tmp_path / "run")
  capsys.readouterr()
  assert main("--workdir", tmp_path / "run", "--out", tmp_path / "set") == 0
  assert capsys.readouterr().out == f"{tmp_path / 'set'}: 20 images, labels hard\n"
  back = artifact.load(tmp_path / "set", expect=image_set.fitted(config))
  student = state_of(tmp_path / "run")
  if name == "dm":
    np.testing.assert_array_equal(back.images, student["images"])
  else:
    np.testing.assert_array_equal(back.images, image_set.whole(config).x[student["rows"]])
  np.testing.assert_array_equal(back.labels, np.repeat(np.arange(10), 2))
  provenance = back.provenance
  assert provenance["step"] == config.steps and "jax" in provenance["versions"]
  assert provenance["config"]["method"]["name"] == f"dataset.{name}"
  assert back.protocol["lr"] == config.protocol.lr
  assert (tmp_path / "set" / "set.png").read_bytes()[:4] == b"\x89PNG"


def test_mistakes_are_one_line_and_exit_code_2(tmp_path, capsys):
  other = tmp_path / "other"
  other.mkdir()
  config_lib.save(config_lib.load("experiments/llm/sft.py:smoke"), other)
  for argv, says in (
    (("--workdir", tmp_path / "none"), "No run at"),
    (("--workdir", other), "is a run of llm.sft, which distils no dataset"),
    (("--set", tmp_path / "none"), "No file"),
    (("--from", "dc", tmp_path, "--data", "digits"), "No layout 'dc'. Known: mtt, sre2l, vico."),
    (("--from", "sre2l", tmp_path), "--data: name the dataset"),
  ):
    assert main(*argv, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and error.count("\n") == 1
