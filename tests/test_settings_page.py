"""The documentation's page of settings leaves out no key of conf/."""

import sys

import pytest
import yaml
from conftest import ROOT

pytest.importorskip("mkdocs", reason="the extra docs is not installed; `make docs` installs it")


@pytest.fixture
def page_of_settings(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))
    import settings

    yield settings
    del sys.modules["settings"]


def leaves(node, above=""):
    for key, value in node.items():
        block = isinstance(value, dict) and value
        yield from leaves(value, f"{above}{key}.") if block else [f"{above}{key}"]


FILES = [path for path in sorted((ROOT / "conf").rglob("*.yaml")) if path.parent.name not in ("experiment", "dataset")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_key_has_a_row(path, page_of_settings):
    content = yaml.safe_load(path.read_text()) or {}
    keys = {key for key in leaves(content) if key.split(".")[0] not in ("defaults", "hydra")}
    found = {one.key for one in page_of_settings.choice(path).settings}
    # A mapping on one line is one row.
    assert {key for key in keys if not any(key.startswith(f"{one}.") for one in found)} <= found
    assert all(one in keys or any(key.startswith(f"{one}.") for key in keys) for one in found)


def test_a_row_has_the_default_and_what_stands_beside_it(page_of_settings, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text('# What it is.\n\na: 1 # the first\nb: # of both\n  c: "x # y"\n  d: 2 # its own\n')
    name, summary, rows = page_of_settings.choice(file, "group")
    assert (name, summary) == ("mine", "What it is.")
    assert [row[:3] for row in rows] == [
        ("group.a", "1", "the first"),
        ("group.b.c", '"x # y"', "of both"),
        ("group.b.d", "2", "its own"),
    ]
