"""Preparing pools when processes meet, are killed or interrupted, and when the disk is full."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import command
from disk_datasets import KVASIR, folders, forbid_decoding
from filelock import FileLock

from metaseg.data import cache, check, pools
from metaseg.data.layouts import Pair
from metaseg.errors import MetasegError

main = command("data")

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("own_cache")


def start(code, *arguments):
    """A Python process of its own that runs code, with what it says on one pipe."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        cwd=REPOSITORY,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


PREPARE = """
import sys
from metaseg.data import catalogue, pools
pool = pools.prepare(catalogue.get("kvasir"), sys.argv[1], 16, sys.argv[2])
print(len(pool), int(pool.images.astype(int).sum()))
"""


@pytest.mark.long
def test_two_processes_at_once_prepare_once(tmp_path, kvasir_root):
    place = tmp_path / "cache"
    place.mkdir()
    lock = FileLock(place / "kvasir-16-lock")
    lock.acquire()
    processes = [start(PREPARE, kvasir_root, place) for _ in range(2)]
    waiting = [process.stdout.readline() for process in processes]  # both are past the first look into the cache
    lock.release()
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert all("waiting for another process" in line for line in waiting)
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("prepared Kvasir-SEG" in text for text in said) == 1
    assert len({text.splitlines()[-1] for text in said}) == 1
    assert len(folders(place)) == 1


KILLED = """
import sys, time
from metaseg.data import catalogue, check, pools
whole = check.for_each

def slow(*arguments):
    for index, found in enumerate(whole(*arguments)):
        if index == 3:
            print("midway")
            time.sleep(60)
        yield found

check.for_each = slow
pools.prepare(catalogue.get("kvasir"), sys.argv[1], 16, sys.argv[2])
"""


@pytest.mark.long
def test_a_killed_process_leaves_a_usable_cache(tmp_path, kvasir_root):
    place = tmp_path / "cache"
    pools.prepare(KVASIR, kvasir_root, 8, place)
    process = start(KILLED, kvasir_root, place)
    for line in process.stdout:  # lines of progress come first where it is slow
        if line == "midway\n":
            break
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    leftovers = [name for name in folders(place) if name.startswith(".kvasir-16-")]
    assert len(leftovers) == 1
    pool = pools.prepare(KVASIR, kvasir_root, 16, place)
    assert len(pool) == 6
    assert [name.rsplit("-", 1)[0] for name in folders(place)] == ["kvasir-16", "kvasir-8"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_nothing(kvasir_root, monkeypatch, error):
    decode = check.inspect

    def interrupted(pair, size):
        if pair.id == "d":
            raise error
        return decode(pair, size)

    monkeypatch.setattr(check, "inspect", interrupted)
    with pytest.raises(error):
        pools.prepare(KVASIR, kvasir_root, 16)
    assert folders(kvasir_root / ".metaseg_cache") == []
    monkeypatch.undo()
    assert len(pools.prepare(KVASIR, kvasir_root, 16)) == 6


def test_an_interruption_does_not_wait_for_remaining_images():
    pairs = [Pair(str(number), Path(), Path()) for number in range(16)]
    begun = []

    def work(pair):
        begun.append(pair.id)
        time.sleep(0.05)

    running = check.for_each(pairs, work, threads=2)
    next(running)
    running.close()
    assert len(begun) < 8


def test_any_number_of_threads_prepares_the_same(tmp_path, kvasir_root):
    one, three = (
        pools.prepare(KVASIR, kvasir_root, 16, tmp_path / str(threads), threads=threads) for threads in (1, 3)
    )
    assert np.array_equal(one.images, three.images)
    assert np.array_equal(one.masks, three.masks)
    with pytest.raises(MetasegError, match="--threads"):
        pools.prepare(KVASIR, kvasir_root, 16, threads=0)


def test_a_terminal_shows_progress(kvasir_root, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    pools.prepare(KVASIR, kvasir_root, 16)
    shown = capsys.readouterr().err
    assert "hashing the files of Kvasir-SEG" in shown
    assert "preparing Kvasir-SEG at 16×16" in shown
    assert "6/6" in shown


def test_a_pool_in_the_cache_is_pickled_as_the_name_of_its_files(kvasir_root):
    pool = pools.prepare(KVASIR, kvasir_root, 256)
    content = pickle.dumps(pool)
    assert len(content) < 2000
    again = pickle.loads(content)
    assert isinstance(again.images, np.memmap)
    assert np.array_equal(again.images, pool.images)
    assert np.array_equal(again.masks, pool.masks)
    assert (again.ids, again.groups.tolist()) == (pool.ids, pool.groups.tolist())


def test_threads_of_one_process_prepare_once(tmp_path, kvasir_root, capsys):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(pools.prepare(KVASIR, kvasir_root, 16, tmp_path / "cache")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert capsys.readouterr().err.count("prepared Kvasir-SEG") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
@pytest.mark.parametrize("size", [16, 256])
def test_a_full_disk_is_reported_and_leaves_the_cache_intact(kvasir_root, monkeypatch, capsys, size):
    pools.prepare(KVASIR, kvasir_root, 8)
    before = folders(kvasir_root / ".metaseg_cache")
    original = cache.ArrayWriter.__init__

    def on_full_disk(self, path, shape):
        path.symlink_to("/dev/full")
        original(self, path, shape)

    monkeypatch.setattr(cache.ArrayWriter, "__init__", on_full_disk)
    with pytest.raises(MetasegError, match=r"kvasir-.* \(No space left on device\).* METASEG_CACHE=DIR"):
        pools.prepare(KVASIR, kvasir_root, size)
    assert main(["prepare", "kvasir", "--root", str(kvasir_root), "--size", str(size)]) == 1
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert folders(kvasir_root / ".metaseg_cache") == before
    monkeypatch.undo()
    forbid_decoding(monkeypatch)
    assert len(pools.prepare(KVASIR, kvasir_root, 8)) == 6
