"""Shared by the tests of fetch: files to pack, archives, and what a fetch leaves."""

import io
import json
import tarfile
import zipfile

import pytest
import yaml
from disk_datasets import write_dataset
from fetch_server import serving

from metaseg.data import catalogue
from metaseg.data.fetching import download, fetch

STEMS = ["a", "b", "c"]


@pytest.fixture(name="no_pauses")
def no_pauses_fixture(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(download, "ATTEMPTS", 2)


@pytest.fixture(name="published")
def published_fixture(tmp_path):
    """A folder with the files of a dataset, to be packed."""
    write_dataset(tmp_path / "published" / "Mine", STEMS)
    return tmp_path / "published"


def zipped(folder, only=""):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            if only in path.as_posix():
                file.write(path, path.relative_to(folder))
    return packed.getvalue()


def tarred(folder, mode="w:gz"):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as file:
        file.add(folder, ".")
    return packed.getvalue()


LAYOUT = [{"images": "Mine/images/{stem}", "masks": "Mine/masks/{stem}"}]


@pytest.fixture(name="offered")
def offered_fixture(tmp_path):
    """Fetch a dataset of one's own whose sources are served; other keys of its YAML may be given."""
    root = tmp_path / "data"

    def call(*files, known=(), **options):
        root.mkdir(exist_ok=True)
        with serving({f"/{name}": file for name, file in files}) as base:
            # The address stays the same over calls of a test, as if the port did.
            sources = [{"url": f"{base}/{name}"} | dict(known) for name, _ in files]
            (root / "mine.yaml").write_text(yaml.safe_dump({"title": "Mine", "layouts": LAYOUT, "sources": sources}))
            records = root / "fetched.json"
            if records.exists():
                noted = {
                    f"{base}/{url.rpartition('/')[2]}": one for url, one in json.loads(records.read_text()).items()
                }
                records.write_text(json.dumps(noted))
            return fetch.fetch(catalogue.get("mine", root), root, **options)

    call.root = root
    return call


def hidden_and_archives(root):
    """What a failed or finished fetch could leave lying about."""
    drafts = [path.name for path in root.glob(".unpacking*")]
    return drafts, sorted(path.name for path in (root / "downloads").iterdir() if path.name != ".lock")
