"""Text from a TFDS dataset, written as ArrayRecord files and read back."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from distill_jax.config import ConfigError
from distill_jax.data import text

END = 256


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
  """A TFDS dataset `tiny_text` of 40 texts in ArrayRecord files, readable without its builder."""
  import tensorflow_datasets as tfds

  with tfds.core.registered.skip_registration():

    class TinyText(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version("1.0.0")

      def _info(self):
        features = dict(text=tfds.features.Text(), title=tfds.features.Text(), label=np.int64)
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

      def _split_generators(self, manager):
        return dict(train=self._generate_examples())

      def _generate_examples(self):
        for i in range(40):
          yield i, dict(text=f"l'été {i} " * 10, title=f"title {i}", label=i)

  root = tmp_path_factory.mktemp("tfds")
  tfds.disable_progress_bar()
  TinyText(data_dir=root, file_format="array_record").download_and_prepare()
  return root


@pytest.fixture
def tfds_dir(tfds_folder, monkeypatch):
  from tensorflow_datasets.core import constants

  # what the environment's TFDS_DATA_DIR sets when tensorflow_datasets is imported
  monkeypatch.setattr(constants, "DATA_DIR", str(tfds_folder))


def test_texts_of_a_tfds_dataset(tfds_dir, tmp_path):
  documents = dict(text.documents("tfds:tiny_text", "text"))
  assert list(documents) == [str(i) for i in range(40)]
  assert sorted(documents.values()) == sorted(f"l'été {i} " * 10 for i in range(40))
  assert next(text.documents("tfds:tiny_text", "title"))[1].startswith("title ")

  config = ConfigDict(dict(seed=0, batch_size=4, cache_dir=str(tmp_path)))
  config.data = dict(source="tfds:tiny_text", field="text", tokenizer="bytes", seq_len=8)
  ids = text.token_ids(config, "validation").tolist()
  held = [documents[name].encode() for name in ("6", "37")]
  assert ids == [*held[0], END, *held[1], END]
  batch = next(iter(text.make(config)))
  assert jax.tree.map(np.shape, batch) == jax.tree.map(np.shape, text.spec(config))


@pytest.mark.parametrize(
  "source, field, says",
  [
    ("tfds:tiny_text", "body", "data.field 'body': the texts in tiny_text are text, title."),
    ("tfds:tiny_text", "label", "data.field 'label': the texts in tiny_text are text, title."),
    ("tfds:nonesuch", "text", "data.source 'tfds:nonesuch': DatasetNotFoundError: "),
  ],
)
def test_mistakes_about_a_tfds_dataset_are_one_line(tfds_dir, source, field, says):
  with pytest.raises(ConfigError) as error:
    list(text.documents(source, field))
  assert str(error.value).startswith(says) and "\n" not in str(error.value)
