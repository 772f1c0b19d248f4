"""The notebooks of examples/ run from top to bottom, and find what they show."""

import pytest
from conftest import ROOT, environment

nbformat = pytest.importorskip("nbformat", reason="the extra docs is not installed; `make docs` installs it")
nbclient = pytest.importorskip("nbclient", reason="the extra docs is not installed; `make docs` installs it")
pytest.importorskip("ipykernel", reason="the extra docs is not installed; `make docs` installs it")


@pytest.mark.long
def test_five_images_are_enough_for_painted_ones(monkeypatch):
    notebook = nbformat.read(ROOT / "examples" / "five_images.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("print(min(dice))"))
    for name, value in environment(PYTHONPATH=str(ROOT)).items():
        monkeypatch.setenv(name, value)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "examples")}}).execute()
    (printed,) = notebook.cells[-1].outputs
    assert float(printed.text) > 0.8
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 1
