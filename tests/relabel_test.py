"""The command: a set and a teacher in folders become labels that a training can meet."""

import jax
import numpy as np

from distill_jax import relabel
from distill_jax.data import soft_labels, views
from distill_jax.distilled import artifact
from distill_jax.losses.log_probs import log_softmax
from distill_jax.models import pretrained, resnet


def test_labels_of_a_set_by_a_teacher(tmp_path, capsys):
  given = resnet.default_config()
  given.update(dict(widths=(4,), blocks=(1,), stem="small", num_classes=3))
  params = resnet.init(given, (8, 8, 1), jax.random.key(0))
  pretrained.save(tmp_path / "teacher", params, given, "float32")
  images = np.asarray(jax.random.normal(jax.random.key(1), (6, 8, 8, 1)))
  labels = np.repeat(np.arange(3, dtype=np.int32), 2)
  made = artifact.DistilledDataset(images, labels, "hard", None, {}, {}, {})
  artifact.save(tmp_path / "set", made)
  folders = [f"--set={tmp_path / 'set'}", f"--teacher={tmp_path / 'teacher'}"]
  command = [*folders, f"--out={tmp_path / 'out'}", "--epochs=2", "--no-flip", "--bits=16"]
  assert relabel.main(command) == 0
  assert "6 images, 2 epochs" in capsys.readouterr().out

  index, log_p = soft_labels.reader(tmp_path / "out", images)(1, np.array([4, 0]))
  seen = views.batch(jax.numpy.asarray(images), jax.random.key(0), 1, np.array([4, 0]), flip=False)
  exact = np.asarray(log_softmax(resnet.apply(given, params, seen)[0]))
  np.testing.assert_allclose(log_p, np.take_along_axis(exact, index, axis=1), atol=1e-3)

  assert relabel.main([*command, "--seed=1"]) == 2
  assert "seed is 0, not 1" in capsys.readouterr().err
  assert relabel.main([*command, f"--teacher={tmp_path}"]) == 2
