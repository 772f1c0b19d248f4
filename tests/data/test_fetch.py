"""`python -m metaseg.data fetch`: from an address to pairs that training reads; hostile archives."""

import hashlib
import io
import json
import os
import stat
import tarfile
import warnings
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from disk_datasets import write_dataset
from fetch_server import Misbehaving, serving
from filelock import FileLock

from metaseg.data import archives, catalogue, download, fetch, layouts
from metaseg.data.__main__ import main
from metaseg.errors import MetasegError

STEMS = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(download, "ATTEMPTS", 2)


@pytest.fixture
def published(tmp_path):
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


@pytest.fixture
def offered(tmp_path):
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
    assert f"no published hash is known; noted sha256 {record['sha256']}" in printed
    assert "Mine: 3 pairs in" in printed


def test_a_second_call_does_nothing(offered, published, capsys):
    offered(("x.zip", Misbehaving(zipped(published))))
    again = Misbehaving(b"not asked for")
    capsys.readouterr()
    assert len(offered(("x.zip", again)).pairs) == 3
    assert again.asked == []
    assert "3 pairs are in" in capsys.readouterr().out


def test_a_dataset_in_two_archives_goes_on_with_the_second(offered, published):
    images, masks = Misbehaving(zipped(published, "images/")), Misbehaving(b"", statuses=[404] * 9)
    packed = zipped(published, "masks/")
    with pytest.raises(MetasegError, match="404"):
        offered(("images.zip", images), ("masks.zip", masks))
    # Both archives have one top folder, so the second has to find it taken.
    with pytest.raises(MetasegError, match=r"mine/Mine is in the way .* will not download"):
        offered(("images.zip", images), ("masks.zip", Misbehaving(packed)))
    assert len(images.asked) == 1
    assert hidden_and_archives(offered.root) == ([], ["masks.zip"])


def test_two_archives_that_lie_beside_each_other(tmp_path, published, capsys):
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
    with pytest.raises(MetasegError, match=r"should have sha256 0{64}, but has .* was removed"):
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
        MetasegError, match=r"differs from what was fetched from .* remove its entry from .*fetched\.json"
    ):
        offered(("x.zip", Misbehaving(other)))
    assert not (offered.root / "mine").exists()
    (offered.root / "downloads/x.zip").unlink()
    assert len(offered(("x.zip", Misbehaving(zipped(published)))).pairs) == 3


def test_an_archive_put_there_by_hand_is_taken(offered, published):
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
def test_what_is_no_whole_archive_is_removed(offered, published, content, words):
    packed = zipped(published)
    if content == "cut":  # the server announced fewer bytes than it had
        content = packed[: len(packed) // 2]
    elif content == "flipped":
        content = bytearray(packed)
        content[len(packed) // 2] ^= 255
        content = bytes(content)
    with pytest.raises(MetasegError, match=rf"{words}.*it was removed: repeat the command"):
        offered(("x.zip", Misbehaving(content)))
    assert hidden_and_archives(offered.root) == ([], [])
    assert not (offered.root / "mine").exists()


def member(name, mode=0):
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
    return info


def hostile_zip(name, content=b"x", mode=0):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one of them has a name twice
        file.writestr("good.png", b"x")
        file.writestr(member(name, mode), content)
    return packed.getvalue()


def hostile_tar(name, kind=tarfile.REGTYPE, target=""):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as file:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        file.addfile(info)
    return packed.getvalue()


HOSTILE = {
    "up": hostile_zip("../out.png"),
    "up, deep": hostile_zip("a/../../out.png"),
    "absolute": hostile_zip("/out.png"),
    "windows up": hostile_zip("..\\out.png"),
    "windows drive": hostile_zip("C:\\out.png"),
    "link": hostile_zip("link", b"/etc", stat.S_IFLNK | 0o777),
    "device": hostile_zip("pipe", b"", stat.S_IFIFO),
    "twice": hostile_zip("good.png"),
    "file as folder": hostile_zip("good.png/x.png"),
    "tar up": hostile_tar("../out.png"),
    "tar absolute": hostile_tar("/out.png"),
    "tar link": hostile_tar("link", tarfile.SYMTYPE, "/etc"),
    "tar hard link": hostile_tar("link", tarfile.LNKTYPE, "../../secret"),
    "tar device": hostile_tar("pipe", tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_write_nothing(offered, tmp_path, case):
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(MetasegError, match=r"is refused, and nothing of it was kept: its member"):
        offered(("x.zip", Misbehaving(HOSTILE[case])))
    assert hidden_and_archives(offered.root)[0] == []
    new = {path.name for path in set(tmp_path.rglob("*")) - set(before)}
    assert new <= {"data", "mine.yaml", "downloads", ".lock", "x.zip", "fetched.json"}


def test_encrypted_archives_are_refused(offered):
    packed = bytearray(hostile_zip("secret.png"))
    for start in (0, packed.rindex(b"PK\x01\x02")):
        packed[start + (6 if start == 0 else 8)] |= 1
    with pytest.raises(MetasegError, match="is encrypted"):
        offered(("x.zip", Misbehaving(bytes(packed))))


@pytest.mark.parametrize("pack", ["zip", "tar"])
def test_bombs_are_refused(offered, monkeypatch, pack):
    monkeypatch.setattr(archives, "ALWAYS", 2**16)
    zeros = bytes(2**23)
    if pack == "zip":
        packed = hostile_zip("zeros.png", zeros)
    else:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as file:
            info = tarfile.TarInfo("zeros.png")
            info.size = len(zeros)
            file.addfile(info, io.BytesIO(zeros))
        packed = stream.getvalue()
    with pytest.raises(MetasegError, match=r"is refused: its \d members would take 8 MiB, expected at most"):
        offered(("x.zip", Misbehaving(packed)))
    assert hidden_and_archives(offered.root)[0] == []


def test_too_many_members_are_refused(offered, published, monkeypatch):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 3)
    with pytest.raises(MetasegError, match="is refused: its 9 members"):
        offered(("x.zip", Misbehaving(zipped(published))))


def test_too_little_space_to_unpack(offered, published, monkeypatch):
    (offered.root / "downloads").mkdir(parents=True)
    (offered.root / "downloads/x.zip").write_bytes(zipped(published))
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(MetasegError, match=r"MiB unpacked, but .* has 0 MiB left: free some space and repeat"):
        offered(("x.zip", Misbehaving(b"")))
    assert hidden_and_archives(offered.root) == ([], ["x.zip"])


def test_a_disk_that_fills_up_while_unpacking_leaves_nothing_half(offered, published, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    file = Misbehaving(zipped(published))
    monkeypatch.setattr(archives.shutil, "copyfileobj", full)
    with pytest.raises(MetasegError, match=r"could not be unpacked in .*: No space left on device; free some space"):
        offered(("x.zip", file))
    assert hidden_and_archives(offered.root) == ([], ["x.zip"])
    assert not (offered.root / "mine").exists()


def test_a_draft_of_a_killed_process_is_cleared_away(offered, published):
    (offered.root / ".unpacking-mine-123").mkdir(parents=True)
    offered(("x.zip", Misbehaving(zipped(published))))
    assert hidden_and_archives(offered.root) == ([], [])


def test_one_process_at_a_time(offered, published):
    (offered.root / "downloads").mkdir(parents=True)
    with FileLock(offered.root / "downloads/.lock"), pytest.raises(MetasegError, match="another process fetches"):
        offered(("x.zip", Misbehaving(zipped(published))))


RAR = b"Rar!\x1a\x07\x01\x00" + bytes(600)


def tool(folder, name, script):
    """A program of that name, alone on the PATH beside a few of the system's."""
    path = folder / name
    folder.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def bin_folder(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_rar_without_a_program_says_what_to_install(offered, bin_folder):
    with pytest.raises(MetasegError, match=r"none of unar, unrar, .* is installed: install one .* will not download"):
        offered(("x.rar", Misbehaving(RAR)))
    assert hidden_and_archives(offered.root) == ([], ["x.rar"])


def test_rar_by_the_first_program_that_can(offered, bin_folder, published):
    # unar -quiet -no-directory -output-directory TARGET ARCHIVE; bsdtar -x -f ARCHIVE -C TARGET
    tool(bin_folder, "unar", 'echo "RAR: unsupported" >&2; touch "$4/half"; exit 1')
    tool(bin_folder, "bsdtar", f'test "$4" = -C && cp -r {published}/Mine "$5"')
    assert len(offered(("x.rar", Misbehaving(RAR))).pairs) == 3
    assert not (offered.root / "mine/half").exists()


def test_rar_that_no_program_can_read(offered, bin_folder):
    tool(bin_folder, "bsdtar", 'echo "RAR: truncated" >&2; exit 1')
    with pytest.raises(MetasegError, match=r"could not be unpacked by bsdtar: RAR: truncated: it may be damaged"):
        offered(("x.rar", Misbehaving(RAR)))
    assert hidden_and_archives(offered.root) == ([], ["x.rar"])


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('ln -s /etc "$5/link"', "is a link or a device"),
        ('head -c 9000000 /dev/zero > "$5/bomb"; sleep 20', "grows beyond"),
    ],
)
def test_what_a_program_unpacks_is_looked_over(offered, bin_folder, monkeypatch, script, words):
    monkeypatch.setattr(archives, "ALWAYS", 2**16)
    tool(bin_folder, "bsdtar", script)
    with pytest.raises(MetasegError, match=words):
        offered(("x.rar", Misbehaving(RAR)))
    assert hidden_and_archives(offered.root)[0] == []
    assert not (offered.root / "mine").exists()


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
    assert "cannot be fetched by a program: download KvasirCapsule-SEG" in said
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
        dataset = replace(catalogue.get(name), sources=(catalogue.Source(f"{base}/x.zip", "x.zip"),))
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
    assert "fetched.json should hold what was fetched" in said[2]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind the administrator")
def test_a_root_that_cannot_be_written_to(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(MetasegError, match="writable"):
        fetch.fetch(catalogue.get("kvasir"), tmp_path)
    tmp_path.chmod(0o755)
