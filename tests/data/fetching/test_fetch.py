"""`metaseg data fetch`: from an address to pairs that training reads."""

import errno
import hashlib
import json
import os
from dataclasses import replace

import pytest
import yaml
from conftest import command
from disk_datasets import write_dataset
from fetch_fixtures import (  # noqa: F401
    STEMS,
    hidden_and_archives,
    no_pauses_fixture,
    offered_fixture,
    published_fixture,
    tarred,
    zipped,
)
from fetch_server import Misbehaving, serving
from filelock import FileLock

from metaseg.data import catalogue, layouts
from metaseg.data.fetching import fetch
from metaseg.errors import MetasegError

main = command("data")

pytestmark = pytest.mark.usefixtures("no_pauses")


@pytest.mark.parametrize(
    ("name", "pack"), [("x.zip", zipped), ("x.tar.gz", tarred), ("x.tar.xz", lambda f: tarred(f, "w:xz"))]
)
def test_from_an_address_to_pairs(offered, published, name, pack, capsys):
    packed = pack(published)
    listing = offered((name, Misbehaving(packed, breaks=[len(packed) // 2])))
    assert [pair.id for pair in listing.pairs] == STEMS
    assert layouts.find(catalogue.get("mine", offered.root), offered.root) == list(listing.pairs)
    assert hidden_and_archives(offered.root) == ([], [])
    (record,) = json.loads((offered.root / "fetched.json").read_text()).values()
    assert record["sha256"] == hashlib.sha256(packed).hexdigest()
    assert (record["bytes"], record["unpacked"], record["known"]) == (len(packed), ["Mine"], False)
    printed = capsys.readouterr().out
    assert f"no published hash; recorded sha256 {record['sha256']}" in printed
    assert "Mine: 3 pairs in" in printed


def test_the_folder_may_be_on_another_disk(offered, published, monkeypatch):
    def rename(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "rename", rename)
    assert [pair.id for pair in offered(("x.zip", Misbehaving(zipped(published)))).pairs] == STEMS


def test_a_second_call_does_nothing(offered, published, capsys):
    offered(("x.zip", Misbehaving(zipped(published))))
    again = Misbehaving(b"not asked for")
    capsys.readouterr()
    assert len(offered(("x.zip", again)).pairs) == 3
    assert again.asked == []
    assert "3 pairs are already in" in capsys.readouterr().out


def test_a_dataset_in_two_archives_resumes_with_the_second(offered, published):
    images, masks = Misbehaving(zipped(published, "images/")), Misbehaving(b"", statuses=[404] * 9)
    packed = zipped(published, "masks/")
    with pytest.raises(MetasegError, match="404"):
        offered(("images.zip", images), ("masks.zip", masks))
    # Both archives have one top folder, so the second has to find it taken.
    with pytest.raises(MetasegError, match=r"mine/Mine already exists, .* will not be downloaded"):
        offered(("images.zip", images), ("masks.zip", Misbehaving(packed)))
    assert len(images.asked) == 1
    assert hidden_and_archives(offered.root) == ([], ["masks.zip"])


def test_two_archives_unpack_side_by_side(tmp_path, published, capsys):
    root = tmp_path / "data"
    root.mkdir()
    files = {f"/{part}.zip": Misbehaving(zipped(published / "Mine", f"{part}/")) for part in ("images", "masks")}
    with serving(files) as base:
        sources = [{"url": base + name} for name in files]
        (root / "mine.yaml").write_text(yaml.safe_dump({"title": "Mine", "sources": sources, "count": 4}))
        assert main(["fetch", "mine", "--root", str(root), "--keep"]) == 0
        assert main(["fetch", "mine", "--root", str(root)]) == 0
    assert [len(file.asked) for file in files.values()] == [1, 1]
    assert "Mine: 3 pairs of 4 published in" in capsys.readouterr().out
    assert hidden_and_archives(root) == ([], ["images.zip", "masks.zip"])


def test_a_known_hash_or_size_is_verified(offered, published, capsys):
    packed = zipped(published)
    known = {"sha256": hashlib.sha256(packed).hexdigest(), "bytes": len(packed)}
    with pytest.raises(MetasegError, match=r"should have sha256 0{64}, but has .* deleted"):
        offered(("x.zip", Misbehaving(packed)), known={"sha256": "0" * 64})
    assert hidden_and_archives(offered.root) == ([], [])
    assert not (offered.root / "mine").exists()
    assert len(offered(("x.zip", Misbehaving(packed)), known=known).pairs) == 3
    assert "no published hash" not in capsys.readouterr().out


def test_a_later_download_has_to_be_the_same_file(offered, published, tmp_path):
    offered(("x.zip", Misbehaving(zipped(published))))
    (offered.root / "mine").rename(tmp_path / "moved")
    other = zipped(published) + b"\0"
    with pytest.raises(
        MetasegError, match=r"differs from the file fetched from .* remove its entry from .*fetched\.json"
    ):
        offered(("x.zip", Misbehaving(other)))
    assert not (offered.root / "mine").exists()
    (offered.root / "downloads/x.zip").unlink()
    assert len(offered(("x.zip", Misbehaving(zipped(published)))).pairs) == 3


def test_manually_placed_archives_are_used(offered, published):
    (offered.root / "downloads").mkdir(parents=True)
    (offered.root / "downloads/x.zip").write_bytes(zipped(published))
    server = Misbehaving(b"")
    assert len(offered(("x.zip", server)).pairs) == 3
    assert server.asked == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><title>Log in</title>", "is a web page"),
        (b"", "is something else"),
        ("cut", "is damaged"),
        ("flipped", "is damaged"),
    ],
)
def test_incomplete_archives_are_removed(offered, published, content, words):
    packed = zipped(published)
    if content == "cut":  # the server announced fewer bytes than it had
        content = packed[: len(packed) // 2]
    elif content == "flipped":
        content = bytearray(packed)
        content[len(packed) // 2] ^= 255
        content = bytes(content)
    with pytest.raises(MetasegError, match=rf"{words}.*it was deleted: repeat the command"):
        offered(("x.zip", Misbehaving(content)))
    assert hidden_and_archives(offered.root) == ([], [])
    assert not (offered.root / "mine").exists()


def test_leftover_temporary_folder_is_removed(offered, published):
    (offered.root / ".unpacking-mine-123").mkdir(parents=True)
    offered(("x.zip", Misbehaving(zipped(published))))
    assert hidden_and_archives(offered.root) == ([], [])


def test_one_process_at_a_time(offered, published):
    (offered.root / "downloads").mkdir(parents=True)
    with FileLock(offered.root / "downloads/.lock"), pytest.raises(MetasegError, match="another process"):
        offered(("x.zip", Misbehaving(zipped(published))))


def test_the_five_datasets_have_sources_or_instructions(tmp_path, capsys):
    files = {name: [source.file for source in catalogue.get(name).sources] for name in catalogue.published()}
    assert files == {
        "cvc": ["CVC-ClinicDB.rar"],
        "isic": ["ISIC2018_Task1-2_Training_Input.zip", "ISIC2018_Task1_Training_GroundTruth.zip"],
        "kvasir": ["kvasir-seg.zip"],
        "kvasir_capsule": [],
        "ph2": ["PH2Dataset.rar"],
    }
    assert main(["fetch", "kvasir_capsule", "--root", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "cannot be fetched automatically: download KvasirCapsule-SEG" in said
    assert "https://datasets.simula.no/kvasir-capsule-seg/" in said
    assert said.count("\n") == 1


PUBLISHED = {
    "kvasir": ("Kvasir-SEG/images/{stem}.jpg", "Kvasir-SEG/masks/{stem}.jpg"),
    "ph2": (
        "PH2Dataset/PH2 Dataset images/{stem}/{stem}_Dermoscopic_Image/{stem}.bmp",
        "PH2Dataset/PH2 Dataset images/{stem}/{stem}_lesion/{stem}_lesion.bmp",
    ),
    "cvc": ("CVC-ClinicDB/Original/{stem}.tif", "CVC-ClinicDB/Ground Truth/{stem}.tif"),
    "isic": (
        "ISIC2018_Task1-2_Training_Input/{stem}.jpg",
        "ISIC2018_Task1_Training_GroundTruth/{stem}_segmentation.png",
    ),
}
"""What the archives hold, as descriptions and code of others have it: nothing was downloaded to write this."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_trees_are_read_where_they_are_unpacked(tmp_path, name):
    images, masks = PUBLISHED[name]
    write_dataset(tmp_path / "published", ["1", "2"], images, masks)
    with serving({"/x.zip": Misbehaving(zipped(tmp_path / "published"))}) as base:
        dataset = replace(catalogue.get(name), sources=(catalogue.RemoteFile(f"{base}/x.zip", "x.zip"),))
        assert len(fetch.fetch(dataset, tmp_path / "data").pairs) == 2


def test_commands_refuse_in_one_sentence(tmp_path, capsys):
    assert main(["fetch"]) == 1
    assert main(["fetch", "mars", "--root", str(tmp_path)]) == 1
    (tmp_path / "fetched.json").write_text("{")
    (tmp_path / "mine.yaml").write_text("title: Mine\nsources: [{url: http://127.0.0.1:9/x.zip}]\n")
    assert main(["fetch", "mine", "--root", str(tmp_path)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert all(line.startswith("error: ") for line in said)
    assert "fetched.json should record" in said[2]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind the administrator")
def test_a_root_that_cannot_be_written_to(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(MetasegError, match="writable"):
        fetch.fetch(catalogue.get("kvasir"), tmp_path)
    tmp_path.chmod(0o755)
