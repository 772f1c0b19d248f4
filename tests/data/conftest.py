"""Fixtures of the tests of pools."""

import pytest
from disk_datasets import STEMS, write_dataset


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """No test reads or writes the user's own cache."""
    monkeypatch.delenv("METASEG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def kvasir_root(tmp_path):
    """A data.root with a Kvasir-SEG of six images."""
    write_dataset(tmp_path / "data" / "kvasir", STEMS, images="images/{stem}.png")
    return tmp_path / "data"
