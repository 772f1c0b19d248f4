"""scripts/fuzz.py finds what is broken, and keeps the file."""

import os
import random
from pathlib import Path

import fuzz
import pytest

from metaseg.errors import MetasegError


def broken(path):
    """A reader with four ways to end."""
    content = path.read_bytes()
    if content == b"hangs":
        os.kill(os.getpid(), 9)
    if content == b"lines":
        raise MetasegError("one\ntwo")
    if content == b"raises":
        raise KeyError("x")
    if content == b"executes":
        Path("executed").touch()
    if content not in (b"hangs", b"lines", b"raises", b"executes", b"good"):
        raise MetasegError("refused")


def test_inputs_not_refused_in_one_sentence_are_found_and_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seeds = {f"{name}.bin": name.encode() for name in ("good", "hangs", "lines", "raises", "executes")}
    monkeypatch.setitem(fuzz.READERS, "images", (lambda: seeds, broken))
    monkeypatch.setattr(fuzz, "changed", lambda *_: b"else")
    (tmp_path / "kept").mkdir()
    ended, findings = fuzz.fuzz("images", 0, random.Random(0), tmp_path / "kept")
    assert (ended["read"], ended["findings"]) == (1, 4)
    assert {name.split()[0] for name in findings} == {"died", "not", "KeyError", "code"}
    assert {path.read_bytes() for path in (tmp_path / "kept").glob("*.bin")} == {
        b"hangs",
        b"lines",
        b"raises",
        b"executes",
    }


@pytest.mark.parametrize("name", ["images", "stacks", "dicom", "csv", "archives"])
def test_changes_are_reproducible(name):
    seeds = fuzz.READERS[name][0]()
    for file, content in seeds.items():
        first, again = (
            [fuzz.changed(chance, file, content, list(seeds.values())) for _ in range(3)]
            for chance in (random.Random(1), random.Random(1))
        )
        assert len(first) == len(again) == 3
        if not file.endswith((".gz", ".zip")):  # they hold the time
            assert first == again
