import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from disk_datasets import picture, save, truncate, write_dataset
from filelock import FileLock
from PIL import Image

from metaseg.data import cache, check, pools
from metaseg.data.__main__ import main
from metaseg.data.catalogue import get
from metaseg.data.layouts import Pair, read_image
from metaseg.errors import MetasegError

STEMS = ["a", "b", "c", "d", "e", "f"]
KVASIR = replace(get("kvasir"), count=len(STEMS))
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    """No test reads or writes the user's own cache."""
    monkeypatch.delenv("METASEG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def root(tmp_path):
    write_dataset(tmp_path / "data" / "kvasir", STEMS, images="images/{stem}.png")
    return tmp_path / "data"


def folders(place):
    """Names in a cache that are datasets or leftovers, without the locks."""
    return sorted(path.name for path in place.iterdir() if path.is_dir())


def forbid_decoding(monkeypatch):
    def inspect(pair):
        raise AssertionError(f"{pair.id} was decoded again")

    monkeypatch.setattr(check, "inspect", inspect)


def test_a_pool_holds_the_images_in_order(root):
    pool = pools.prepare(KVASIR, root, 48)
    assert (pool.name, pool.ids, len(pool)) == ("kvasir", tuple(STEMS), 6)
    assert (pool.images.dtype, pool.images.shape) == (np.uint8, (6, 48, 48, 3))
    assert (pool.masks.dtype, pool.masks.shape) == (np.uint8, (6, 48, 48))
    assert pool.groups.tolist() == [0, 1, 2, 3, 4, 5]
    for index, stem in enumerate(STEMS):
        image = Image.open(root / "kvasir" / "images" / f"{stem}.png")
        assert np.array_equal(pool.images[index], image.resize((48, 48), Image.Resampling.BILINEAR))
        # Nearest neighbour: the centre of column c lies at 2·(c + ½), that of row r at 1.5·(r + ½).
        rows, columns = (np.floor((np.arange(48) + 0.5) * side / 48).astype(int) for side in (72, 96))
        assert np.array_equal(pool.masks[index], picture(index)[1][rows][:, columns])


def test_images_of_the_working_size_are_not_changed(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    save(Image.fromarray(image), tmp_path / "kvasir" / "images" / "a.png")
    save(Image.fromarray(np.eye(16, dtype=np.uint8) * 255), tmp_path / "kvasir" / "masks" / "a.png")
    pool = pools.prepare(KVASIR, tmp_path, 16)
    assert np.array_equal(pool.images[0], image)
    assert np.array_equal(pool.masks[0], np.eye(16))


def test_shrinking_averages(tmp_path):
    checkers = np.indices((64, 64)).sum(axis=0) % 2 * 200
    save(Image.fromarray(np.dstack([checkers] * 3).astype(np.uint8)), tmp_path / "kvasir" / "images" / "a.png")
    save(Image.fromarray(np.eye(64, dtype=np.uint8) * 255), tmp_path / "kvasir" / "masks" / "a.png")
    pool = pools.prepare(KVASIR, tmp_path, 16)
    assert np.abs(pool.images[0, 2:-2, 2:-2].astype(int) - 100).max() <= 2


def test_take_copies_in_the_order_asked_for(root):
    pool = pools.prepare(KVASIR, root, 16)
    images, masks = pool.take([4, 1, 4])
    assert np.array_equal(images, pool.images[[4, 1, 4]])
    assert np.array_equal(masks, pool.masks[[4, 1, 4]])
    images[:] = 0
    assert pool.images[4].any()
    for array in (pool.images, pool.masks, pool.groups):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_the_second_time_nothing_is_decoded(root, monkeypatch, capsys):
    first = pools.prepare(KVASIR, root, 16)
    assert "prepared Kvasir-SEG: 6 images at 16×16" in capsys.readouterr().err
    forbid_decoding(monkeypatch)
    second = pools.prepare(KVASIR, root, 16)
    assert np.array_equal(first.images, second.images)
    assert (first.ids, first.groups.tolist()) == (second.ids, second.groups.tolist())
    assert isinstance(second.images, np.memmap)
    assert capsys.readouterr().err == ""


def test_another_content_makes_another_pool_even_at_the_same_size_and_time(tmp_path):
    root = tmp_path / "data"
    write_dataset(root / "kvasir", STEMS, masks="masks/{stem}.bmp")  # BMP: the same size whatever the content
    before = pools.prepare(KVASIR, root, 16)
    small = pools.prepare(KVASIR, root, 8)
    mask = root / "kvasir" / "masks" / "c.bmp"
    stat = mask.stat()
    save(Image.fromarray((~picture(2)[1]).astype(np.uint8) * 255), mask)
    os.utime(mask, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (mask.stat().st_size, mask.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    after = pools.prepare(KVASIR, root, 16)
    assert np.array_equal(after.masks[2], 1 - before.masks[2])
    assert np.array_equal(after.masks[[0, 1, 3, 4, 5]], before.masks[[0, 1, 3, 4, 5]])
    # The stale version of this size is gone, that of the other size is not this one's business.
    kept = folders(root / ".metaseg_cache")
    assert [name.rsplit("-", 1)[0] for name in kept] == ["kvasir-16", "kvasir-8"]
    assert len(small.take([0])[0]) == 1


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "grouping"])
def test_what_else_makes_a_pool_stale(root, change):
    dataset = KVASIR
    pools.prepare(dataset, root, 16)
    images, masks = root / "kvasir" / "images", root / "kvasir" / "masks"
    if change == "added":
        write_dataset(root / "kvasir", ["g"], first_seed=50)
    elif change == "removed":
        (images / "f.png").unlink()
        (masks / "f.png").unlink()
    elif change == "renamed":
        (images / "f.png").rename(images / "z.png")
        (masks / "f.png").rename(masks / "z.png")
    else:
        dataset = replace(KVASIR, blocks=2)
    pool = pools.prepare(dataset, root, 16)
    expected = {"added": [*STEMS, "g"], "removed": STEMS[:-1], "renamed": [*STEMS[:-1], "z"], "grouping": STEMS}
    assert list(pool.ids) == expected[change]
    assert pool.groups.tolist() == ([0, 0, 0, 1, 1, 1] if change == "grouping" else list(range(len(pool))))
    assert len(folders(root / ".metaseg_cache")) == 1


@pytest.mark.parametrize("damage", ["images.npy", "masks.npy", "meta.json", "header", "absent"])
def test_a_damaged_cache_is_rebuilt(root, damage, capsys):
    before = pools.prepare(KVASIR, root, 16)
    images = np.array(before.images)
    (folder,) = (root / ".metaseg_cache").glob("kvasir-16-*/")
    if damage == "header":
        content = (folder / "images.npy").read_bytes()
        (folder / "images.npy").write_bytes(b"\0" * 64 + content[64:])
    elif damage == "absent":
        (folder / "masks.npy").unlink()
    else:
        truncate(folder / damage, 0.9)
    capsys.readouterr()
    assert np.array_equal(pools.prepare(KVASIR, root, 16).images, images)
    assert "prepared Kvasir-SEG" in capsys.readouterr().err
    assert len(folders(root / ".metaseg_cache")) == 1


def test_two_copies_of_a_dataset_share_a_cache(tmp_path, root, monkeypatch):
    write_dataset(tmp_path / "other" / "kvasir", STEMS, first_seed=30)
    first = pools.prepare(KVASIR, root, 16, tmp_path / "cache")
    second = pools.prepare(KVASIR, tmp_path / "other", 16, tmp_path / "cache")
    assert not np.array_equal(first.images, second.images)
    forbid_decoding(monkeypatch)
    pools.prepare(KVASIR, root, 16, tmp_path / "cache")
    assert len(folders(tmp_path / "cache")) == 2


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
from metaseg.data import pools
pool = pools.prepare("kvasir", sys.argv[1], 16, sys.argv[2])
print(len(pool), int(pool.images.astype(int).sum()))
"""


def test_two_processes_at_once_prepare_once(tmp_path, root):
    place = tmp_path / "cache"
    place.mkdir()
    lock = FileLock(place / "kvasir-16-lock")
    lock.acquire()
    processes = [start(PREPARE, root, place) for _ in range(2)]
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
from metaseg.data import check, pools
whole = check.for_each

def slow(*arguments):
    for index, found in enumerate(whole(*arguments)):
        if index == 3:
            print("midway")
            time.sleep(60)
        yield found

check.for_each = slow
pools.prepare("kvasir", sys.argv[1], 16, sys.argv[2])
"""


def test_a_killed_process_leaves_nothing_that_harms(tmp_path, root):
    place = tmp_path / "cache"
    pools.prepare(KVASIR, root, 8, place)
    process = start(KILLED, root, place)
    assert process.stdout.readline() == "midway\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    leftovers = [name for name in folders(place) if name.startswith(".kvasir-16-")]
    assert len(leftovers) == 1
    pool = pools.prepare(KVASIR, root, 16, place)
    assert len(pool) == 6
    assert [name.rsplit("-", 1)[0] for name in folders(place)] == ["kvasir-16", "kvasir-8"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_nothing(root, monkeypatch, error):
    decode = check.inspect

    def interrupted(pair):
        if pair.id == "d":
            raise error
        return decode(pair)

    monkeypatch.setattr(check, "inspect", interrupted)
    with pytest.raises(error):
        pools.prepare(KVASIR, root, 16)
    assert folders(root / ".metaseg_cache") == []
    monkeypatch.undo()
    assert len(pools.prepare(KVASIR, root, 16)) == 6


def test_an_interruption_does_not_wait_for_what_is_left(root):
    pairs = [Pair(str(number), Path(), Path()) for number in range(16)]
    begun = []

    def work(pair):
        begun.append(pair.id)
        time.sleep(0.05)

    running = check.for_each(pairs, work, threads=2)
    next(running)
    running.close()
    assert len(begun) < 8


def test_any_number_of_threads_prepares_the_same(tmp_path, root):
    one, three = (pools.prepare(KVASIR, root, 16, tmp_path / str(threads), threads=threads) for threads in (1, 3))
    assert np.array_equal(one.images, three.images)
    assert np.array_equal(one.masks, three.masks)
    with pytest.raises(MetasegError, match="at least one thread"):
        pools.prepare(KVASIR, root, 16, threads=0)


def test_a_terminal_shows_progress(root, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    pools.prepare(KVASIR, root, 16)
    shown = capsys.readouterr().err
    assert "hashing the files of Kvasir-SEG" in shown
    assert "preparing Kvasir-SEG at 16×16" in shown
    assert "6/6" in shown


def test_a_pool_in_the_cache_is_pickled_as_the_name_of_its_files(root):
    pool = pools.prepare(KVASIR, root, 256)
    content = pickle.dumps(pool)
    assert len(content) < 2000
    again = pickle.loads(content)
    assert isinstance(again.images, np.memmap)
    assert np.array_equal(again.images, pool.images)
    assert np.array_equal(again.masks, pool.masks)
    assert (again.ids, again.groups.tolist()) == (pool.ids, pool.groups.tolist())


def test_threads_of_one_process_prepare_once(tmp_path, root, capsys):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(pools.prepare(KVASIR, root, 16, tmp_path / "cache")))
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
def test_a_full_disk_is_told_and_harms_nothing(root, monkeypatch, capsys, size):
    pools.prepare(KVASIR, root, 8)
    before = folders(root / ".metaseg_cache")
    original = cache.ArrayWriter.__init__

    def on_full_disk(self, path, shape):
        path.symlink_to("/dev/full")
        original(self, path, shape)

    monkeypatch.setattr(cache.ArrayWriter, "__init__", on_full_disk)
    with pytest.raises(MetasegError, match=r"the disk is full: kvasir at .* METASEG_CACHE=DIR"):
        pools.prepare(KVASIR, root, size)
    assert main(["prepare", "kvasir", "--root", str(root), "--size", str(size)]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: the disk is full")
    assert folders(root / ".metaseg_cache") == before
    monkeypatch.undo()
    forbid_decoding(monkeypatch)
    assert len(pools.prepare(KVASIR, root, 8)) == 6


def test_a_faulty_dataset_is_refused_with_the_first_fault(root):
    truncate(root / "kvasir" / "images" / "b.png")
    save(Image.fromarray(picture(3)[1][:-1]), root / "kvasir" / "masks" / "d.png")
    with pytest.raises(MetasegError, match=r"2 of its 6 pairs are faulty, the first being b: cannot read .*b\.png"):
        pools.prepare(KVASIR, root, 16)
    assert folders(root / ".metaseg_cache") == []


def test_an_unpaired_dataset_is_refused(root):
    (root / "kvasir" / "masks" / "a.png").unlink()
    with pytest.raises(MetasegError, match="1 without a mask"):
        pools.prepare(KVASIR, root, 16)


@pytest.mark.parametrize("size", [0, 7, 1025])
def test_sizes_out_of_range_are_refused(root, size):
    with pytest.raises(MetasegError, match="should be 8 to 1024 pixels"):
        pools.prepare(KVASIR, root, size)


def test_where_the_cache_lies(tmp_path, root, monkeypatch):
    pools.prepare(KVASIR, root, 16)
    assert len(folders(root / ".metaseg_cache")) == 1
    monkeypatch.setenv("METASEG_CACHE", str(tmp_path / "named"))
    pools.prepare(KVASIR, root, 16)
    assert len(folders(tmp_path / "named")) == 1
    pools.prepare(KVASIR, root, 16, tmp_path / "argument")
    assert len(folders(tmp_path / "argument")) == 1
    assert not (tmp_path / "home").exists()


def test_read_only_data_is_left_alone_even_by_the_administrator(tmp_path, root):
    root.chmod(0o555)
    try:
        assert len(pools.prepare(KVASIR, root, 16)) == 6
        assert not (root / ".metaseg_cache").exists()
        assert len(folders(tmp_path / "home" / "metaseg")) == 1
    finally:
        root.chmod(0o755)


def test_a_cache_beside_read_only_data_is_used(tmp_path, root, monkeypatch):
    pools.prepare(KVASIR, root, 16)
    forbid_decoding(monkeypatch)
    monkeypatch.setattr(cache, "writable", lambda candidates: pytest.fail("nothing needs to be written"))
    assert len(pools.prepare(KVASIR, root, 16)) == 6


def test_nowhere_to_write_is_told(tmp_path, root):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        MetasegError, match=r"no folder for prepared images can be written to: tried .*METASEG_CACHE=DIR"
    ):
        pools.prepare(KVASIR, root, 16, tmp_path / "file")


def test_large_files_are_hashed_again_only_when_they_change(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "LARGE", 10)
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(b"0123456789")
    small.write_bytes(b"012345678")
    key, records = cache.content_key([large, small], tmp_path, {})
    assert list(records) == [str(large)]
    assert cache.content_key([large, small], tmp_path, {}, records) == (key, {})
    assert cache.content_key([large, small], tmp_path, {"size": 2}, records)[0] != key
    stat = large.stat()
    large.write_bytes(b"9876543210")
    os.utime(large, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert cache.content_key([large, small], tmp_path, {}, records)[0] != key
    large.write_bytes(b"0123456789")
    small.write_bytes(b"876543210")
    assert cache.content_key([large, small], tmp_path, {}, records)[0] != key


def test_hashes_of_large_files_are_remembered(tmp_path, root, monkeypatch):
    monkeypatch.setattr(cache, "LARGE", 10)
    pools.prepare(KVASIR, root, 16, tmp_path / "cache")
    records = json.loads((tmp_path / "cache" / "kvasir-digests.json").read_text())
    assert len(records) == 12
    opened = []
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *rest, **more: opened.append(path) or original(path, *rest, **more))
    pools.prepare(KVASIR, root, 16, tmp_path / "cache")
    assert not [path for path in opened if path.suffix == ".png"]


def test_an_unreadable_file_is_named_while_hashing(tmp_path):
    with pytest.raises(MetasegError, match=r"cannot read .*gone"):
        cache.content_key([tmp_path / "gone"], tmp_path, {})


def arrays(count=4, size=8):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8), rng.random((count, size, size)) < 0.5


def test_a_pool_from_arrays():
    images, masks = arrays()
    pool = pools.prepare_arrays("twin", images, masks, ["w", "x", "y", "z"], np.array([0, 0, 1, 1]))
    assert (pool.ids, pool.groups.tolist()) == (("w", "x", "y", "z"), [0, 0, 1, 1])
    assert pool.masks.dtype == np.uint8
    assert np.array_equal(pool.masks, masks)
    with pytest.raises(ValueError, match="read-only"):
        pool.images[0] = 0
    images[0] = 0  # the caller's own array stays writable
    plain = pools.prepare_arrays("twin", *arrays())
    assert (plain.ids[:2], plain.groups.tolist()) == (("0000", "0001"), [0, 1, 2, 3])


def test_faulty_arrays_are_refused():
    images, masks = arrays()
    with pytest.raises(MetasegError, match="expected images uint8"):
        pools.prepare_arrays("twin", images / 255, masks)
    with pytest.raises(MetasegError, match="expected masks of 0 and 1"):
        pools.prepare_arrays("twin", images, masks * 255)
    with pytest.raises(MetasegError, match="expected masks of 0 and 1"):
        pools.prepare_arrays("twin", images, masks[:, :4])
    with pytest.raises(MetasegError, match="4 different ids"):
        pools.prepare_arrays("twin", images, masks, ["a", "a", "b", "c"])
    with pytest.raises(MetasegError, match="4 groups"):
        pools.prepare_arrays("twin", images, masks, groups=np.zeros(3))


def grouped(groups):
    count = len(groups)
    return pools.prepare_arrays("twin", *arrays(count), groups=np.array(groups))


@pytest.mark.parametrize("seed", range(20))
def test_a_split_never_separates_a_group(seed):
    pool = grouped(np.random.default_rng(seed).integers(0, 12, 60))
    train, held_out = pools.split_by_group(pool, 0.25, seed)
    assert sorted([*train, *held_out]) == list(range(60))
    assert not set(pool.groups[train]) & set(pool.groups[held_out])
    assert 0 < len(held_out) <= 15


def test_a_split_is_a_function_of_the_seed():
    pool = grouped(range(50))
    splits = [pools.split_by_group(pool, 0.2, seed)[1].tolist() for seed in (0, 0, 1, 2)]
    assert splits[0] == splits[1]
    assert len({tuple(split) for split in splits}) == 3
    assert all(len(split) == 10 for split in splits)


def test_the_capsule_video_is_split_44_to_11_in_one_stretch():
    pool = grouped(np.repeat(np.arange(5), 11))
    train, held_out = pools.split_by_group(pool, 0.2, seed=3)
    assert (len(train), len(held_out)) == (44, 11)
    assert np.ptp(held_out) == 10


def test_large_groups_and_impossible_splits():
    train, held_out = pools.split_by_group(grouped([0, 0, 0, 1, 1]), 0.1, seed=0)
    assert (train.tolist(), held_out.tolist()) == ([0, 1, 2], [3, 4])
    with pytest.raises(MetasegError, match="all its 3 images belong together"):
        pools.split_by_group(grouped([7, 7, 7]), 0.5, seed=0)
    for fraction in (0, 1, -0.1, 20):
        with pytest.raises(MetasegError, match="between 0 and 1"):
            pools.split_by_group(grouped([0, 1]), fraction, seed=0)


def test_command_prepares(root, capsys):
    assert main(["prepare", "kvasir", "--root", str(root), "--size", "16"]) == 0
    assert "Kvasir-SEG: 6 images at 16×16, ready" in capsys.readouterr().out


@pytest.mark.skipif("METASEG_DATA" not in os.environ, reason="needs the real datasets in METASEG_DATA")
def test_real_datasets_are_prepared(tmp_path):
    root = os.environ["METASEG_DATA"]
    ph2 = pools.prepare("ph2", root, 64, tmp_path)
    assert 198 <= len(ph2) <= 200
    assert ph2.masks.mean() == pytest.approx(get("ph2").foreground, abs=0.01)
    first = read_image(next(Path(root).glob(f"ph2*/**/{ph2.ids[0]}.*")))
    assert ph2.images[0].mean() == pytest.approx(first.mean(), abs=1)
    cvc = pools.prepare("cvc", root, 64, tmp_path)
    train, held_out = pools.split_by_group(cvc, 0.2, seed=0)
    assert len(set(cvc.groups[train])) + len(set(cvc.groups[held_out])) == 29
