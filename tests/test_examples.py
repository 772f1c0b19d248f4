"""The notebooks of examples/ run from top to bottom, and find what they show."""

import json

import matplotlib
import pytest
from conftest import ROOT
from matplotlib import pyplot


@pytest.fixture
def without_windows():
    before = matplotlib.get_backend()
    matplotlib.use("agg")
    yield
    pyplot.close("all")
    matplotlib.use(before)


@pytest.mark.long
@pytest.mark.usefixtures("without_windows")
def test_five_images_are_enough_for_painted_ones():
    notebook = json.loads((ROOT / "examples" / "five_images.ipynb").read_text(encoding="utf-8"))
    namespace = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), namespace)
    assert min(namespace["dice"]) > 0.8
    assert len(pyplot.get_fignums()) == 1
