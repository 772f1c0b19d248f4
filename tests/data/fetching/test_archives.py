"""Archives as fetch gets them: hostile, too large, or readable by other programs only."""

import io
import stat
import tarfile
import warnings
import zipfile
from types import SimpleNamespace

import pytest
from fetch_fixtures import hidden_and_archives, no_pauses_fixture, offered_fixture, published_fixture, zipped  # noqa: F401
from fetch_server import Misbehaving

from metaseg.data.fetching import archives
from metaseg.errors import MetasegError

pytestmark = pytest.mark.usefixtures("no_pauses")


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
        file.addfile(tarfile.TarInfo("good.png"))
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
    "long name": hostile_zip("x" * 300),
    "file as folder": hostile_zip("good.png/x.png"),
    "tar twice": hostile_tar("good.png"),
    "tar up": hostile_tar("../out.png"),
    "tar absolute": hostile_tar("/out.png"),
    "tar link": hostile_tar("link", tarfile.SYMTYPE, "/etc"),
    "tar hard link": hostile_tar("link", tarfile.LNKTYPE, "../../secret"),
    "tar device": hostile_tar("pipe", tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_write_nothing(offered, tmp_path, case):
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(MetasegError, match=r"nothing was unpacked: its member"):
        offered(("x.zip", Misbehaving(HOSTILE[case])))
    assert hidden_and_archives(offered.root)[0] == []
    new = {path.name for path in set(tmp_path.rglob("*")) - set(before)}
    assert new <= {"data", "mine.yaml", "downloads", ".lock", "x.zip", "fetched.json"}


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_a_header_that_grows_is_refused_before_it_is_read(tmp_path, suffix):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=f"w:{suffix}", format=tarfile.GNU_FORMAT) as file:
        file.addfile(tarfile.TarInfo("x" * (archives._BLOCK + 1)))
    (tmp_path / "x.tar").write_bytes(packed.getvalue())
    with pytest.raises(archives.DamagedError, match="header"):
        archives.unpack(tmp_path / "x.tar", tmp_path)


def test_zip_members_at_negative_offsets_mean_damage(tmp_path):
    packed = bytearray(hostile_zip("a.png"))
    start = packed.rindex(b"PK\x05\x06") + 16  # where the directory begins: later than it does, so offsets are negative
    packed[start : start + 4] = (int.from_bytes(packed[start : start + 4], "little") + 2**24).to_bytes(4, "little")
    (tmp_path / "x.zip").write_bytes(packed)
    with pytest.raises(archives.DamagedError):
        archives.unpack(tmp_path / "x.zip", tmp_path / "target")


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
    with pytest.raises(MetasegError, match=r"was refused: its \d members would take 8 MiB, expected at most"):
        offered(("x.zip", Misbehaving(packed)))
    assert hidden_and_archives(offered.root)[0] == []


def test_too_many_members_are_refused(offered, published, monkeypatch):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 3)
    with pytest.raises(MetasegError, match="was refused: its 9 members"):
        offered(("x.zip", Misbehaving(zipped(published))))


def test_too_little_space_to_unpack(offered, published, monkeypatch):
    (offered.root / "downloads").mkdir(parents=True)
    (offered.root / "downloads/x.zip").write_bytes(zipped(published))
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(MetasegError, match=r"MiB unpacked, but .* has only 0 MiB left: free some space and repeat"):
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
        ('head -c 9000000 /dev/zero > "$5/bomb"; sleep 20', "exceeds"),
    ],
)
def test_content_unpacked_by_a_program_is_checked(offered, bin_folder, monkeypatch, script, words):
    monkeypatch.setattr(archives, "ALWAYS", 2**16)
    tool(bin_folder, "bsdtar", script)
    with pytest.raises(MetasegError, match=words):
        offered(("x.rar", Misbehaving(RAR)))
    assert hidden_and_archives(offered.root)[0] == []
    assert not (offered.root / "mine").exists()
