"""Every notebook runs as a reader would run it, shows no warning, and is stored without outputs."""

import os
import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FOLDERS = {"01_losses": ROOT}  # where it is started; elsewhere in its own folder, as Jupyter does


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_without_outputs(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    if cell.cell_type == "code":
      assert not cell.outputs and cell.execution_count is None, cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_without_a_warning(path):
  notebook = nbformat.read(path, as_version=4)
  folder = str(FOLDERS.get(path.stem, path.parent))
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}  # one device
  client = NotebookClient(
    notebook,
    timeout=600,
    kernel_name="python3",  # of the environment that runs the tests
    resources=dict(metadata=dict(path=folder)),
  )
  client.execute(env=environment | {"JAX_PLATFORMS": "cpu"})
  outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
  complaints = [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
  assert not complaints, complaints
  assert any("image/png" in o.get("data", {}) for o in outputs)
