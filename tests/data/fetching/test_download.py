"""Downloads from a server that breaks off, lies and changes its mind."""

import errno
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fetch_server import Misbehaving, serving

from metaseg.data.fetching import download
from metaseg.errors import MetasegError

CONTENT = np.random.default_rng(0).bytes(3 * 2**20 + 17)
SIZE = len(CONTENT)
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)


@pytest.fixture
def fetched(tmp_path):
    """Download one file from a server that behaves as told; the file's path."""

    def call(file, expected=None):
        with serving({"/x.zip": file}) as base:
            # The port would be another at a second call.
            note = tmp_path / "x.zip.part.json"
            if note.exists():
                note.write_text(json.dumps(json.loads(note.read_text()) | {"url": f"{base}/x.zip"}))
            download.download(f"{base}/x.zip", tmp_path / "x.zip", expected)
        return tmp_path / "x.zip"

    return call


def ranges(file):
    return [headers.get("Range") for headers in file.asked]


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file(fetched, tmp_path):
    assert fetched(Misbehaving(CONTENT), SIZE).read_bytes() == CONTENT
    assert left(tmp_path) == ["x.zip"]


@pytest.mark.parametrize("validators", [{}, {"etag": None, "modified": "Wed, 21 Oct 2015 07:28:00 GMT"}])
def test_a_connection_that_breaks_is_continued_from_there(fetched, validators):
    file = Misbehaving(CONTENT, breaks=[2**20, 2**19, 0], **validators)
    assert fetched(file).read_bytes() == CONTENT
    asked = ranges(file)
    assert asked[0] is None
    assert asked[1] == f"bytes={2**20}-"
    assert asked[2] == asked[3] == f"bytes={2**20 + 2**19}-"
    assert file.asked[1]["If-Range"] == (file.etag or file.modified)


def test_a_second_call_continues_what_the_first_gave_up(fetched, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with pytest.raises(MetasegError, match=r"ended after 1048576 bytes .* kept in .*x\.zip\.part") as caught:
        fetched(Misbehaving(CONTENT, breaks=[2**20, 0]))
    assert f"of {SIZE}" in str(caught.value)
    assert left(tmp_path) == ["x.zip.part", "x.zip.part.json"]
    file = Misbehaving(CONTENT)
    assert fetched(file).read_bytes() == CONTENT
    assert ranges(file) == [f"bytes={2**20}-"]


@pytest.mark.parametrize("how", [{"ranges": False}, {"etag": None}, {"etag": 'W/"1"'}])
def test_without_ranges_or_a_sign_of_sameness_it_starts_over(fetched, how):
    file = Misbehaving(CONTENT, breaks=[2**20], **how)
    assert fetched(file).read_bytes() == CONTENT
    assert len(file.asked) == 2


def test_content_that_changes_in_between_is_never_mixed(fetched, capsys):
    other = CONTENT[::-1]
    file = Misbehaving(CONTENT, breaks=[2**20], after_first={"content": other, "etag": '"2"'})
    assert fetched(file).read_bytes() == other
    assert "starting over" in capsys.readouterr().out


def test_ranges_of_another_file_are_rejected(fetched):
    changed = {"content": CONTENT[::-1], "etag": '"2"'}
    file = Misbehaving(CONTENT, breaks=[2**20], after_first=changed, careless=True)
    assert fetched(file).read_bytes() == changed["content"]
    assert len(file.asked) == 3


def test_truncated_downloads_are_reported_with_both_sizes(fetched, tmp_path):
    with pytest.raises(MetasegError, match=f"ended after {SIZE} bytes of {SIZE + 1000}|cannot resume after {SIZE}"):
        fetched(Misbehaving(CONTENT, announced=SIZE + 1000))
    assert "x.zip" not in left(tmp_path)
    with pytest.raises(MetasegError, match=f"ended after {SIZE} bytes of {SIZE + 1000}"):
        fetched(Misbehaving(CONTENT, announced=SIZE + 1000, ranges=False))
    assert "x.zip" not in left(tmp_path)


@pytest.mark.parametrize("announced", [SIZE - 1000, SIZE + 1000])
def test_another_length_than_the_known_one_is_refused(fetched, tmp_path, announced):
    with pytest.raises(MetasegError, match=f"should be {SIZE} bytes, but the server announces {announced}"):
        fetched(Misbehaving(CONTENT, announced=announced), SIZE)
    assert left(tmp_path) == []


def test_complete_partial_files_are_not_requested_again(fetched, tmp_path):
    (tmp_path / "x.zip.part").write_bytes(CONTENT)
    note = {"url": "", "etag": '"1"', "modified": None, "total": SIZE}
    (tmp_path / "x.zip.part.json").write_text(json.dumps(note))
    file = Misbehaving(CONTENT)
    assert fetched(file).read_bytes() == CONTENT
    assert file.asked == []


@pytest.mark.parametrize("note", [None, "no JSON", '{"url": "http://elsewhere"}'])
def test_a_part_of_unknown_origin_is_not_continued(fetched, tmp_path, note):
    (tmp_path / "x.zip.part").write_bytes(b"something else")
    file = Misbehaving(CONTENT)
    if note is not None and note.startswith("no"):
        (tmp_path / "x.zip.part.json").write_text('{"half": 1}')
    assert fetched(file).read_bytes() == CONTENT
    assert ranges(file) == [None]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_in_trouble_is_asked_again(fetched, status, capsys):
    assert fetched(Misbehaving(CONTENT, statuses=[status, status])).read_bytes() == CONTENT
    assert f"the server answered {status}" in capsys.readouterr().out
    file = Misbehaving(CONTENT, statuses=[status] * 100)
    with pytest.raises(MetasegError, match=f"the server answered {status} .*, 6 times in a row"):
        fetched(file)
    assert len(file.asked) == 6


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_final(fetched, status):
    file = Misbehaving(CONTENT, statuses=[status] * 2)
    with pytest.raises(MetasegError, match=f"the server answered {status} .* address may have changed"):
        fetched(file)
    assert len(file.asked) == 1


def test_waits_between_attempts_grow_and_follow_the_server(fetched, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 1.0)
    pauses = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    fetched(Misbehaving(CONTENT, statuses=[500] * 4))
    assert pauses == [1, 2, 4, 8]


def test_unreachable_servers_are_reported(tmp_path):
    with serving({}) as base:
        pass
    with pytest.raises(MetasegError, match="no connection"):
        download.download(f"{base}/x.zip", tmp_path / "x.zip")


def test_too_little_space_is_reported_before_anything_is_written(fetched, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(MetasegError, match=r"needs 3 MiB more, but .* has 1 MiB left"):
        fetched(Misbehaving(CONTENT))
    assert not (tmp_path / "x.zip.part").exists()


def test_a_disk_that_fills_up_keeps_what_there_is(fetched, tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, block):
            if self.file.tell() > 2**20:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.file.write(block)

    opened = Path.open

    def full(path, mode="r", *rest, **more):
        file = opened(path, mode, *rest, **more)
        return Full(file) if mode == "ab" else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(MetasegError, match=r"the disk is full.* MiB are kept in"):
            fetched(Misbehaving(CONTENT))
    file = Misbehaving(CONTENT)
    assert fetched(file).read_bytes() == CONTENT
    assert ranges(file)[0] is not None


@pytest.mark.long
def test_ctrl_c_keeps_the_partial_file_and_explains_how_to_resume(tmp_path):
    held = threading.Event()
    with serving({"/x.zip": Misbehaving(CONTENT, announced=2 * SIZE, held=held)}) as base:
        (tmp_path / "mine.yaml").write_text(f"title: Mine\nsources: [{{url: {base}/x.zip}}]\n")
        command = [sys.executable, "-m", "metaseg", "data", "fetch", "mine", "--root", str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        part, end = tmp_path / "downloads/x.zip.part", time.monotonic() + 60
        while not (part.is_file() and part.stat().st_size >= 2**20) and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        held.set()
    assert process.returncode == 130, said
    assert said.count("\n") == 1
    assert "interrupted; " in said
    assert "MiB are kept in" in said
    assert "repeat the command to resume" in said
    assert CONTENT.startswith(part.read_bytes())


def test_https_never_leads_to_an_unprotected_address():
    response = SimpleNamespace(status_code=200, url="http://x/y.zip", history=[], reason="OK", headers={})
    with pytest.raises(MetasegError, match="insecure address"):
        download._check_status("https://x/y.zip", response)
