import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import command
from disk_datasets import KVASIR, STEMS, folders, forbid_decoding, picture, save, truncate, write_dataset
from PIL import Image

from metaseg.data import cache, pools
from metaseg.data.catalogue import get
from metaseg.data.images import read_image
from metaseg.errors import MetasegError

main = command("data")

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_pool_holds_the_images_in_order(kvasir_root):
    pool = pools.prepare(KVASIR, kvasir_root, 48)
    assert (pool.name, pool.ids, len(pool)) == ("kvasir", tuple(STEMS), 6)
    assert (pool.images.dtype, pool.images.shape) == (np.uint8, (6, 48, 48, 3))
    assert (pool.masks.dtype, pool.masks.shape) == (np.uint8, (6, 48, 48))
    assert pool.groups.tolist() == [0, 1, 2, 3, 4, 5]
    for index, stem in enumerate(STEMS):
        image = Image.open(kvasir_root / "kvasir" / "images" / f"{stem}.png")
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


def test_a_large_working_size_keeps_the_detail_of_a_large_jpeg(tmp_path):
    stripes = (np.indices((2048, 2048))[1] // 4 % 2 * 255).astype(np.uint8)  # averaged out at a quarter of the size
    save(Image.fromarray(np.dstack([stripes] * 3)), tmp_path / "kvasir" / "images" / "a.jpg")
    save(Image.fromarray(np.eye(2048, dtype=np.uint8) * 255), tmp_path / "kvasir" / "masks" / "a.png")
    pool = pools.prepare(KVASIR, tmp_path, 1024)
    assert pool.images[0].std() > 100


def test_take_copies_in_the_order_asked_for(kvasir_root):
    pool = pools.prepare(KVASIR, kvasir_root, 16)
    images, masks = pool.take([4, 1, 4])
    assert np.array_equal(images, pool.images[[4, 1, 4]])
    assert np.array_equal(masks, pool.masks[[4, 1, 4]])
    images[:] = 0
    assert pool.images[4].any()
    for array in (pool.images, pool.masks, pool.groups):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_the_second_time_nothing_is_decoded(kvasir_root, monkeypatch, capsys):
    first = pools.prepare(KVASIR, kvasir_root, 16)
    assert "prepared Kvasir-SEG: 6 images at 16×16" in capsys.readouterr().err
    forbid_decoding(monkeypatch)
    second = pools.prepare(KVASIR, kvasir_root, 16)
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
def test_changed_files_or_grouping_make_a_pool_stale(kvasir_root, change):
    dataset = KVASIR
    pools.prepare(dataset, kvasir_root, 16)
    images, masks = kvasir_root / "kvasir" / "images", kvasir_root / "kvasir" / "masks"
    if change == "added":
        write_dataset(kvasir_root / "kvasir", ["g"], first_seed=50)
    elif change == "removed":
        (images / "f.png").unlink()
        (masks / "f.png").unlink()
    elif change == "renamed":
        (images / "f.png").rename(images / "z.png")
        (masks / "f.png").rename(masks / "z.png")
    else:
        dataset = replace(KVASIR, blocks=2)
    pool = pools.prepare(dataset, kvasir_root, 16)
    expected = {"added": [*STEMS, "g"], "removed": STEMS[:-1], "renamed": [*STEMS[:-1], "z"], "grouping": STEMS}
    assert list(pool.ids) == expected[change]
    assert pool.groups.tolist() == ([0, 0, 0, 1, 1, 1] if change == "grouping" else list(range(len(pool))))
    assert len(folders(kvasir_root / ".metaseg_cache")) == 1


@pytest.mark.parametrize("damage", ["images.npy", "masks.npy", "meta.json", "header", "absent"])
def test_a_damaged_cache_is_rebuilt(kvasir_root, damage, capsys):
    before = pools.prepare(KVASIR, kvasir_root, 16)
    images = np.array(before.images)
    (folder,) = (kvasir_root / ".metaseg_cache").glob("kvasir-16-*/")
    if damage == "header":
        content = (folder / "images.npy").read_bytes()
        (folder / "images.npy").write_bytes(b"\0" * 64 + content[64:])
    elif damage == "absent":
        (folder / "masks.npy").unlink()
    else:
        truncate(folder / damage, 0.9)
    capsys.readouterr()
    assert np.array_equal(pools.prepare(KVASIR, kvasir_root, 16).images, images)
    assert "prepared Kvasir-SEG" in capsys.readouterr().err
    assert len(folders(kvasir_root / ".metaseg_cache")) == 1


def test_two_copies_of_a_dataset_share_a_cache(tmp_path, kvasir_root, monkeypatch):
    write_dataset(tmp_path / "other" / "kvasir", STEMS, first_seed=30)
    first = pools.prepare(KVASIR, kvasir_root, 16, tmp_path / "cache")
    second = pools.prepare(KVASIR, tmp_path / "other", 16, tmp_path / "cache")
    assert not np.array_equal(first.images, second.images)
    forbid_decoding(monkeypatch)
    pools.prepare(KVASIR, kvasir_root, 16, tmp_path / "cache")
    assert len(folders(tmp_path / "cache")) == 2


def test_a_faulty_dataset_is_refused_with_the_first_fault(kvasir_root):
    truncate(kvasir_root / "kvasir" / "images" / "b.png")
    save(Image.fromarray(picture(3)[1][:-1]), kvasir_root / "kvasir" / "masks" / "d.png")
    with pytest.raises(MetasegError, match=r"2 of its 6 pairs are faulty, the first being b: cannot read .*b\.png"):
        pools.prepare(KVASIR, kvasir_root, 16)
    assert folders(kvasir_root / ".metaseg_cache") == []


def test_an_unpaired_dataset_is_refused(kvasir_root):
    (kvasir_root / "kvasir" / "masks" / "a.png").unlink()
    with pytest.raises(MetasegError, match="1 without a mask"):
        pools.prepare(KVASIR, kvasir_root, 16)


@pytest.mark.parametrize("size", [0, 7, 1025])
def test_sizes_out_of_range_are_refused(kvasir_root, size):
    with pytest.raises(MetasegError, match="should be 8 to 1024 pixels"):
        pools.prepare(KVASIR, kvasir_root, size)


def test_the_cache_folder_is_the_argument_the_variable_or_below_the_root(tmp_path, kvasir_root, monkeypatch):
    pools.prepare(KVASIR, kvasir_root, 16)
    assert len(folders(kvasir_root / ".metaseg_cache")) == 1
    monkeypatch.setenv("METASEG_CACHE", str(tmp_path / "named"))
    pools.prepare(KVASIR, kvasir_root, 16)
    assert len(folders(tmp_path / "named")) == 1
    pools.prepare(KVASIR, kvasir_root, 16, tmp_path / "argument")
    assert len(folders(tmp_path / "argument")) == 1
    assert not (tmp_path / "home").exists()


def test_read_only_data_is_left_alone_even_by_the_administrator(tmp_path, kvasir_root):
    kvasir_root.chmod(0o555)
    try:
        assert len(pools.prepare(KVASIR, kvasir_root, 16)) == 6
        assert not (kvasir_root / ".metaseg_cache").exists()
        assert len(folders(tmp_path / "home" / "metaseg")) == 1
    finally:
        kvasir_root.chmod(0o755)


def test_a_cache_beside_read_only_data_is_used(tmp_path, kvasir_root, monkeypatch):
    pools.prepare(KVASIR, kvasir_root, 16)
    forbid_decoding(monkeypatch)
    monkeypatch.setattr(cache, "writable", lambda candidates: pytest.fail("nothing needs to be written"))
    assert len(pools.prepare(KVASIR, kvasir_root, 16)) == 6


def test_a_missing_writable_folder_is_reported(tmp_path, kvasir_root):
    (tmp_path / "file").write_text("")
    with pytest.raises(MetasegError, match=r"no writable folder .*METASEG_CACHE=DIR"):
        pools.prepare(KVASIR, kvasir_root, 16, tmp_path / "file")


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


def test_hashes_of_large_files_are_remembered(tmp_path, kvasir_root, monkeypatch):
    monkeypatch.setattr(cache, "LARGE", 10)
    pools.prepare(KVASIR, kvasir_root, 16, tmp_path / "cache")
    records = json.loads((tmp_path / "cache" / "kvasir-digests.json").read_text())
    assert len(records) == 12
    opened = []
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *rest, **more: opened.append(path) or original(path, *rest, **more))
    pools.prepare(KVASIR, kvasir_root, 16, tmp_path / "cache")
    assert not [path for path in opened if path.suffix == ".png"]


def test_an_unreadable_file_is_named_while_hashing(tmp_path):
    with pytest.raises(MetasegError, match=r"cannot read .*gone"):
        cache.content_key([tmp_path / "gone"], tmp_path, {})


def test_command_prepares(kvasir_root, capsys):
    assert main(["prepare", "kvasir", "--root", str(kvasir_root), "--size", "16"]) == 0
    assert "Kvasir-SEG: 6 images at 16×16, ready" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.skipif("METASEG_DATA" not in os.environ, reason="needs the real datasets in METASEG_DATA")
def test_real_datasets_are_prepared(tmp_path):
    root = os.environ["METASEG_DATA"]
    ph2 = pools.prepare(get("ph2"), root, 64, tmp_path)
    assert 198 <= len(ph2) <= 200
    assert ph2.masks.mean() == pytest.approx(get("ph2").foreground, abs=0.01)
    first = read_image(next(Path(root).glob(f"ph2*/**/{ph2.ids[0]}.*")))
    assert ph2.images[0].mean() == pytest.approx(first.mean(), abs=1)
    cvc = pools.prepare(get("cvc"), root, 64, tmp_path)
    train, held_out = pools.split_by_group(cvc, 0.2, seed=0)
    assert len(set(cvc.groups[train])) + len(set(cvc.groups[held_out])) == 29


def test_other_sequences_are_prepared_anew(tmp_path):
    write_dataset(tmp_path / "kvasir", ["1", "2", "3", "4"])
    dataset = replace(KVASIR, count=4)
    assert pools.prepare(dataset, tmp_path, 32).groups.tolist() == [0, 1, 2, 3]
    assert pools.prepare(replace(dataset, sequence_starts=(1, 3)), tmp_path, 32).groups.tolist() == [0, 0, 1, 1]
