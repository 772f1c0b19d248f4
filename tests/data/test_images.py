import struct
import zlib

import numpy as np
import pytest
from disk_datasets import picture, save, truncate
from PIL import Image

from metaseg.data import images
from metaseg.errors import MetasegError


def test_exif_rotation_is_honoured(tmp_path):
    values = np.zeros((4, 6, 3), np.uint8)
    values[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: the top left corner goes to the top right
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    read = images.read_image(tmp_path / "a.png")
    assert read.shape == (6, 4, 3)
    assert np.argwhere(read[..., 0]).tolist() == [[0, 3]]
    assert images.open_image(tmp_path / "a.png")[1] == (4, 6)


def test_images_of_any_mode_become_rgb(tmp_path):
    grey = np.array([[0, 128, 255]], np.uint8)
    expected = np.repeat(grey[..., None], 3, axis=-1).tolist()
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    rgba = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    for name in ("grey", "deep", "rgba"):
        assert images.read_image(tmp_path / f"{name}.png").tolist() == expected
    rgba[..., 3] = 0
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    assert images.read_image(tmp_path / "clear.png").tolist() == [[[0, 0, 0]] * 3]


def test_a_large_jpeg_is_decoded_smaller_but_the_same(tmp_path):
    image, _ = picture(3, width=800, height=640)
    save(image, tmp_path / "a.jpg")
    small, size = images.open_image(tmp_path / "a.jpg", at_least=200)
    assert (small.size, size) == ((400, 320), (800, 640))
    whole = np.asarray(images.open_image(tmp_path / "a.jpg")[0].resize((50, 40), Image.Resampling.BOX), float)
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
    read = images.read_mask(tmp_path / "mask.png")
    assert read.dtype == bool
    assert read.tolist() == TRUTH.tolist()


def test_grey_is_cut_above_127(tmp_path):
    Image.fromarray(np.array([[0, 1, 126, 127, 128, 255]], np.uint8)).save(tmp_path / "mask.png")
    assert images.read_mask(tmp_path / "mask.png").tolist() == [[False, False, False, False, True, True]]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "PA"])
def test_empty_mask_stays_empty(tmp_path, mode):
    """With transparency: white, of which nothing is drawn."""
    bands = {"L": [0], "LA": [255, 0], "RGBA": [255, 255, 255, 0], "PA": [255, 255, 255, 0]}[mode]
    blank = Image.fromarray(np.tile(np.array(bands, np.uint8), (2, 3, 1)).squeeze(-1 if mode == "L" else ()))
    (blank.quantize() if mode == "PA" else blank).save(tmp_path / "mask.png")
    assert not images.read_mask(tmp_path / "mask.png").any()


@pytest.mark.parametrize(
    ("read", "damage", "suffix"),
    [
        (images.read_image, "truncated", ".jpg"),
        (images.read_image, "truncated", ".tif"),
        (images.read_image, "garbage", ".png"),
        (images.read_image, "absent", ".bmp"),
        (images.read_mask, "truncated", ".png"),
        (images.read_mask, "truncated", ".bmp"),
        (images.read_mask, "empty", ".jpg"),
        (images.read_mask, "absent", ".tif"),
    ],
)
def test_damaged_files_are_named(tmp_path, suffix, damage, read):
    path = tmp_path / f"broken{suffix}"
    if damage == "truncated":
        save(picture(0)[0], path)
        truncate(path, 0.6)
    elif damage != "absent":
        path.write_bytes(b"no image at all" if damage == "garbage" else b"")
    with pytest.raises(MetasegError, match=rf"cannot read .*broken\{suffix}"):
        read(path)


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


@pytest.mark.parametrize("read", [images.read_image, images.grey_mask])
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_images_are_refused(tmp_path, case, read, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)
    (tmp_path / "a.png").write_bytes(HOSTILE[case])
    with pytest.raises(MetasegError, match=r"cannot read .*a\.png"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("turned", range(1, 9))
def test_an_image_and_its_mask_are_turned_alike(tmp_path, turned):
    exif = Image.Exif()
    exif[0x0112] = turned
    Image.fromarray(TRUTH.astype(np.uint8) * 255).save(tmp_path / "a.png", exif=exif)
    image, size = images.open_image(tmp_path / "a.png")
    assert image.size == size
    assert np.array_equal(np.asarray(image)[..., 0] > 127, images.read_mask(tmp_path / "a.png"))
