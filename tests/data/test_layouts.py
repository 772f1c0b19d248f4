import os
import struct
import zlib

import numpy as np
import pytest
from disk_datasets import picture, save, truncate, write_dataset
from PIL import Image

from metaseg.data import layouts
from metaseg.data.catalogue import get
from metaseg.errors import MetasegError

PUBLISHED = {
    "ph2": (
        "ph2",
        "PH2Dataset/PH2 Dataset images/{stem}/{stem}_Dermoscopic_Image/{stem}.bmp",
        "PH2Dataset/PH2 Dataset images/{stem}/{stem}_lesion/{stem}_lesion.bmp",
    ),
    "ph2 as unpacked": (
        "PH2Dataset",
        "PH2 Dataset images/{stem}/{stem}_Dermoscopic_Image/{stem}.bmp",
        "PH2 Dataset images/{stem}/{stem}_lesion/{stem}_lesion.bmp",
    ),
    "kvasir": ("Kvasir-SEG", "images/{stem}.jpg", "masks/{stem}.jpg"),
    "cvc": ("CVC-ClinicDB", "Original/{stem}.tif", "Ground Truth/{stem}.tif"),
    "cvc as png": ("CVC-ClinicDB", "PNG/Original/{stem}.png", "PNG/Ground Truth/{stem}.png"),
    "isic": (
        "isic2018",
        "ISIC2018_Task1-2_Training_Input/{stem}.jpg",
        "ISIC2018_Task1_Training_GroundTruth/{stem}_segmentation.png",
    ),
    "isic as unpacked": (
        ".",
        "ISIC2018_Task1-2_Training_Input/{stem}.jpg",
        "ISIC2018_Task1_Training_GroundTruth/{stem}_segmentation.png",
    ),
    "kvasir_capsule": ("KvasirCapsule-SEG", "images/{stem}.jpg", "masks/{stem}.jpg"),
    "ph2 plain": ("ph2", "images/{stem}.jpeg", "masks/{stem}.PNG"),
    "isic plain": ("isic", "images/{stem}.tiff", "masks/{stem}.bmp"),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_every_layout_is_read(tmp_path, case):
    folder, images, masks = PUBLISHED[case]
    truth = write_dataset(tmp_path / folder, ["10", "9", "100"], images, masks)
    pairs = layouts.find(get(case.split()[0]), tmp_path)
    assert [pair.id for pair in pairs] == ["9", "10", "100"]
    for pair in pairs:
        assert layouts.read_image(pair.image).shape == (72, 96, 3)
        agreement = (layouts.read_mask(pair.mask) == truth[pair.id]).mean()
        assert agreement == 1 if pair.mask.suffix != ".jpg" else agreement > 0.995


def test_other_files_are_passed_over(tmp_path):
    write_dataset(tmp_path / "kvasir", ["a", "b"])
    (tmp_path / "kvasir" / "images" / "ATTRIBUTION.txt").write_text("thanks")
    (tmp_path / "kvasir" / "images" / "._a.jpg").write_bytes(b"\0")
    assert [pair.id for pair in layouts.find(get("kvasir"), tmp_path)] == ["a", "b"]


def test_a_stem_must_be_the_same_all_along_the_path(tmp_path):
    folder, images, masks = PUBLISHED["ph2"]
    write_dataset(tmp_path / folder, ["IMD002"], images, masks)
    nested = tmp_path / folder / "PH2Dataset" / "PH2 Dataset images"
    save(picture(1)[0], nested / "IMD003" / "IMD003_Dermoscopic_Image" / "IMD004.bmp")
    assert [pair.id for pair in layouts.find(get("ph2"), tmp_path)] == ["IMD002"]


@pytest.mark.parametrize("name", ["ph2", "isic"])
def test_plain_folders_directly_under_the_root_belong_to_nobody(tmp_path, name):
    write_dataset(tmp_path, ["a", "b"])
    with pytest.raises(MetasegError, match="was not found"):
        layouts.find(get(name), tmp_path)


def test_missing_data_says_where_and_how(tmp_path):
    with pytest.raises(MetasegError) as caught:
        layouts.find(get("kvasir"), tmp_path)
    for part in ("kvasir", str(tmp_path), "Kvasir-SEG", "download", "https://datasets.simula.no", "data=synthetic"):
        assert part in str(caught.value)
    with pytest.raises(MetasegError, match="nowhere does not exist"):
        layouts.find(get("kvasir"), tmp_path / "nowhere")
    (tmp_path / "kvasir_seg").mkdir()
    with pytest.raises(MetasegError, match=r"kvasir_seg holds no images laid out as .*images/\{stem\}"):
        layouts.find(get("kvasir"), tmp_path)


def test_unpaired_files_are_counted(tmp_path):
    write_dataset(tmp_path / "kvasir", ["a", "b", "c", "d"])
    (tmp_path / "kvasir" / "masks" / "a.png").unlink()
    (tmp_path / "kvasir" / "masks" / "b.png").unlink()
    (tmp_path / "kvasir" / "images" / "c.jpg").unlink()
    with pytest.raises(
        MetasegError, match=r"2 without a mask \(such as a.jpg\), 1 masks without an image \(such as c.png"
    ):
        layouts.find(get("kvasir"), tmp_path)
    listing = layouts.scan(get("kvasir"), tmp_path)
    assert [pair.id for pair in listing.pairs] == ["d"]
    assert [path.name for path in listing.images_without_mask] == ["a.jpg", "b.jpg"]
    assert [path.name for path in listing.masks_without_image] == ["c.png"]


def test_two_files_of_one_stem_are_ambiguous(tmp_path):
    write_dataset(tmp_path / "kvasir", ["a", "b"])
    save(picture(7)[0], tmp_path / "kvasir" / "images" / "a.png")
    listing = layouts.scan(get("kvasir"), tmp_path)
    assert [path.name for path in listing.ambiguous] == ["a.jpg", "a.png"]
    assert [pair.id for pair in listing.pairs] == ["b"]
    with pytest.raises(MetasegError, match="2 files that share a stem"):
        layouts.find(get("kvasir"), tmp_path)


def test_images_alone_are_unpaired_not_missing(tmp_path):
    write_dataset(tmp_path / "kvasir", ["a", "b"])
    for mask in (tmp_path / "kvasir" / "masks").iterdir():
        mask.unlink()
    assert layouts.scan(get("kvasir"), tmp_path).faults == 2


def test_natural_order():
    names = ["10", "9", "a10", "a9b2", "a9b10", "a", "IMD003", "IMD002"]
    assert sorted(names, key=layouts.natural_key) == ["9", "10", "IMD002", "IMD003", "a", "a9b2", "a9b10", "a10"]


def test_exif_rotation_is_honoured(tmp_path):
    values = np.zeros((4, 6, 3), np.uint8)
    values[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: the top left corner goes to the top right
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    read = layouts.read_image(tmp_path / "a.png")
    assert read.shape == (6, 4, 3)
    assert np.argwhere(read[..., 0]).tolist() == [[0, 3]]
    assert layouts.open_image(tmp_path / "a.png")[1] == (4, 6)


def test_images_of_any_mode_become_rgb(tmp_path):
    grey = np.array([[0, 128, 255]], np.uint8)
    expected = np.repeat(grey[..., None], 3, axis=-1).tolist()
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    rgba = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    for name in ("grey", "deep", "rgba"):
        assert layouts.read_image(tmp_path / f"{name}.png").tolist() == expected
    rgba[..., 3] = 0
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    assert layouts.read_image(tmp_path / "clear.png").tolist() == [[[0, 0, 0]] * 3]


def test_a_large_jpeg_is_decoded_smaller_but_the_same(tmp_path):
    image, _ = picture(3, width=800, height=640)
    save(image, tmp_path / "a.jpg")
    small, size = layouts.open_image(tmp_path / "a.jpg", at_least=200)
    assert (small.size, size) == ((400, 320), (800, 640))
    whole = np.asarray(layouts.open_image(tmp_path / "a.jpg")[0].resize((50, 40), Image.Resampling.BOX), float)
    part = np.asarray(small.resize((50, 40), Image.Resampling.BOX), float)
    assert np.abs(whole - part).mean() < 1


TRUTH = np.array([[True, False, False], [False, True, True]])


def mask_images():
    byte = TRUTH.astype(np.uint8)
    palette = Image.fromarray(byte, mode="L").convert("P")
    palette.putdata(byte.ravel().tolist())
    palette.putpalette([0, 0, 0, 128, 0, 0])
    inverse = palette.copy()
    inverse.putdata((1 - byte).ravel().tolist())
    inverse.putpalette([255, 255, 255, 0, 0, 0])
    zero, full = np.zeros_like(byte), np.full_like(byte, 255)
    return {
        "1 bit": Image.fromarray(TRUTH),
        "0 and 255": Image.fromarray(byte * 255),
        "0 and 1": Image.fromarray(byte),
        "16 bits": Image.fromarray(byte.astype(np.uint16) * 65535),
        "palette, dark red on black": palette,
        "palette, index 1 is black": inverse,
        "red on black": Image.fromarray(np.dstack([byte * 255, zero, zero])),
        "colour, opaque": Image.fromarray(np.dstack([byte * 255] * 3 + [full])),
        "white, transparency is the mask": Image.fromarray(np.dstack([full] * 3 + [byte * 255])),
        "black, transparency is the mask": Image.fromarray(np.dstack([zero] * 3 + [byte * 255])),
        "colour and transparency": Image.fromarray(np.dstack([byte * 255, zero, zero, 100 + byte * 155])),
        "grey and transparency": Image.fromarray(np.dstack([byte * 255, full])),
    }


@pytest.mark.parametrize("kind", mask_images())
def test_masks_of_every_kind(tmp_path, kind):
    mask_images()[kind].save(tmp_path / "mask.png")
    read = layouts.read_mask(tmp_path / "mask.png")
    assert read.dtype == bool
    assert read.tolist() == TRUTH.tolist()


def test_grey_is_cut_above_127(tmp_path):
    Image.fromarray(np.array([[0, 1, 126, 127, 128, 255]], np.uint8)).save(tmp_path / "mask.png")
    assert layouts.read_mask(tmp_path / "mask.png").tolist() == [[False, False, False, False, True, True]]


def test_empty_mask_stays_empty(tmp_path):
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / "mask.png")
    assert not layouts.read_mask(tmp_path / "mask.png").any()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "absent"])
@pytest.mark.parametrize("read", [layouts.read_image, layouts.read_mask])
def test_damaged_files_are_named(tmp_path, suffix, damage, read):
    path = tmp_path / f"broken{suffix}"
    if damage == "truncated":
        save(picture(0)[0], path)
        truncate(path, 0.6)
    elif damage != "absent":
        path.write_bytes(b"no image at all" if damage == "garbage" else b"")
    with pytest.raises(MetasegError, match=rf"cannot read .*broken\{suffix}"):
        read(path)


@pytest.mark.skipif("METASEG_DATA" not in os.environ, reason="needs the real datasets in METASEG_DATA")
@pytest.mark.parametrize(
    ("name", "most"), [("ph2", 200), ("kvasir", 1000), ("cvc", 612), ("isic", 2594), ("kvasir_capsule", 55)]
)
def test_real_datasets_are_found(name, most):
    pairs = layouts.find(get(name), os.environ["METASEG_DATA"])
    assert 0.99 * most <= len(pairs) <= most
    assert layouts.read_mask(pairs[0].mask).shape == layouts.read_image(pairs[0].image).shape[:2]


def png(width, height, data=b""):
    """A PNG file, right in all but its data: 1 bit a pixel."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part)) for kind, part in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


HOSTILE = {
    "a huge size": png(60000, 60000),
    "a large size": png(9000, 9000, zlib.compress(bytes(9000))),
    "no data": png(8, 8),
    "a format that starts a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EOF\n",
    "a format that names further files": b"\x9c\x9c" + bytes(600),
    "a TIFF without a size": b"II*\0\x08\0\0\0\x01\0\x03\x01\x03\0\x01\0\0\0\x01\0\0\0\0\0\0\0",
    "a part of exabytes": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x01jp2h" + (2**62).to_bytes(8, "big"),
}


@pytest.mark.parametrize("read", [layouts.read_image, layouts.grey_mask])
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_images_are_refused(tmp_path, case, read, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)
    (tmp_path / "a.png").write_bytes(HOSTILE[case])
    with pytest.raises(MetasegError, match=r"cannot read .*a\.png"):
        read(tmp_path / "a.png")
