"""Packages import from the packages below them alone, and docs/architecture.md shows them as they are."""

import subprocess
import sys
import textwrap

import draw_imports
import pytest
from conftest import ROOT

LIBRARIES = ("torch", "pandas", "scipy", "matplotlib", "numpy", "hydra", "jinja2")
"""What `metaseg --help` need not wait for."""


def test_no_package_imports_from_one_above_it():
    assert draw_imports.upward(draw_imports.imports()) == []


def test_an_import_upward_would_be_found(tmp_path, monkeypatch):
    (tmp_path / "metaseg" / "meta").mkdir(parents=True)
    (tmp_path / "metaseg" / "app").mkdir()
    (tmp_path / "metaseg" / "app" / "page.py").write_text("")
    (tmp_path / "metaseg" / "meta" / "losses.py").write_text("def late():\n    from metaseg.app import page\n")
    monkeypatch.setattr(draw_imports, "ROOT", tmp_path)
    (sentence,) = draw_imports.upward(draw_imports.imports())
    assert sentence.startswith("metaseg.meta.losses (meta) imports metaseg.app.page (app)")


def test_the_page_shows_the_packages_as_they_are():
    assert draw_imports.page() == draw_imports.PAGE.read_text(encoding="utf-8"), (
        "python scripts/draw_imports.py --write"
    )


def test_every_folder_is_a_package():
    folders = {str(path.parent.relative_to(ROOT / "metaseg")) for path in (ROOT / "metaseg").rglob("*.py")}
    assert folders - {"."} == set(draw_imports.PACKAGES) - {"metaseg"}


@pytest.mark.long
@pytest.mark.parametrize(
    "steps",
    [
        {
            "metaseg.cli.program": LIBRARIES,
            "metaseg.cli.report": LIBRARIES,
            "metaseg.runs.directory": ("torch", "lightning", "pandas", "numpy"),
            "metaseg.cli.commands": ("torch", "lightning", "pandas", "matplotlib"),
        },
        {
            "torch": (),
            "metaseg.meta.gradients": ("numpy.random", "lightning", "hydra", "metaseg.errors"),
            "metaseg.learners.build": ("lightning", "wandb", "albumentations", "segmentation_models_pytorch"),
            "metaseg.adapting.loading": (
                *("lightning", "wandb", "albumentations", "segmentation_models_pytorch", "torchvision"),
            ),
        },
    ],
    ids=["commands", "learners"],
)
def test_a_package_is_imported_without_what_it_has_no_use_for(steps):
    """One after the other in one process; what torch itself imports does not count."""
    program = textwrap.dedent(f"""
        import sys, importlib
        before = set()
        for imported, absent in {steps!r}.items():
            importlib.import_module(imported)
            if imported == "torch":
                before = set(sys.modules)
            print(imported, [name for name in absent if name in set(sys.modules) - before])
    """)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{imported} []" for imported in steps]
