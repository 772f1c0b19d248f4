"""Contact sheets: what is drawn where, and what is refused."""

import numpy as np
import pytest
from conftest import command
from PIL import Image

from metaseg.errors import MetasegError
from metaseg.plots.contact_sheets import SheetSection, contact_sheet
from metaseg.plots.overlays import PREDICTION_COLOUR, TRUTH_COLOUR

main = command("data")


def section(count=3, size=64, empty=()):
    images = np.full((count, size, size, 3), 90, np.uint8)
    masks = np.zeros((count, size, size), np.uint8)
    masks[:, 16:48, 16:48] = 1
    masks[list(empty)] = 0
    return SheetSection(
        "PH²", images, masks, [f"a very long name of an image, number {index:09d}" for index in range(count)]
    )


def share(picture, colour):
    return (np.asarray(picture) == colour).all(axis=-1).mean()


def test_every_mask_is_outlined(tmp_path):
    path = contact_sheet([section(), section(5)], tmp_path / "sub" / "sheet.png", columns=2)
    sheet = Image.open(path)
    assert sheet.size == (2 * 264 + 8, 30 + 2 * 282 + 8 + 30 + 3 * 282 + 8)
    assert share(sheet, PREDICTION_COLOUR) == 0
    first = sheet.crop((8, 30, 8 + 256, 30 + 256))
    # A square of 128 pixels, its outline two pixels to either side.
    assert share(first, TRUTH_COLOUR) == pytest.approx(4 * 128 * 4 / 256**2, rel=0.02)
    missing = sheet.crop((8 + 264, 30 + 282, 8 + 264 + 256, 30 + 282 + 256))
    assert share(missing, TRUTH_COLOUR) == 0


def test_empty_masks_have_no_outline(tmp_path):
    sheet = Image.open(contact_sheet([section(2, empty=[1])], tmp_path / "sheet.png"))
    assert share(sheet.crop((272, 30, 528, 286)), TRUTH_COLOUR) == 0
    assert share(sheet.crop((8, 30, 264, 286)), TRUTH_COLOUR) > 0


def test_wrong_use_is_refused(tmp_path):
    with pytest.raises(MetasegError, match="at least one image"):
        contact_sheet([], tmp_path / "sheet.png")
    with pytest.raises(MetasegError, match=r"\.png, \.jpg or \.pdf file, not sheet\.xyz"):
        contact_sheet([section()], tmp_path / "sheet.xyz")
    (tmp_path / "file").write_text("")
    with pytest.raises(MetasegError, match="could not be written"):
        contact_sheet([section()], tmp_path / "file" / "sheet.png")


def test_the_command_draws_the_same_images_for_the_same_seed(tmp_path, capsys):
    def drawn(name, *options):
        path = tmp_path / name
        synthetic = ["show", "ph2", "cvc", "--synthetic", "--size", "32", "--count", "3", "--out", str(path), *options]
        assert main(synthetic) == 0
        return path.read_bytes()

    assert drawn("a.png") == drawn("b.png")
    assert drawn("c.png", "--seed", "1") != drawn("a.png")
    assert "PH², CVC-ClinicDB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ph2", "--synthetic", "--count", "0"], "--count from 1"),
        (["ph2", "--synthetic", "--size", "4"], "--size from 8"),
        (["ph2", "--synthetic", "--size", "16"], "size ≥ 32"),
        (["ph2", "--root", "nowhere"], "ph2 (PH²) was not found"),
        (["mars"], "unknown dataset 'mars'"),
        ([], "required"),
    ],
)
def test_the_command_refuses_in_one_sentence(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["show", *arguments]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_faulty_images_lead_to_check(tmp_path, capsys):
    for folder, size in (("images", (40, 40)), ("masks", (40, 30))):
        (tmp_path / "mine" / folder).mkdir(parents=True)
        Image.new("L", size, 255).save(tmp_path / "mine" / folder / "a.png")
    (tmp_path / "mine.yaml").write_text("title: Mine\n")
    assert main(["show", "mine", "--root", str(tmp_path), "--out", str(tmp_path / "sheet.png")]) == 1
    assert "metaseg data check mine" in capsys.readouterr().err
    Image.new("L", (40, 40), 255).save(tmp_path / "mine/masks/a.png")
    assert main(["show", "mine", "--root", str(tmp_path), "--out", str(tmp_path / "sheet.png")]) == 0
    assert Image.open(tmp_path / "sheet.png").size == (272, 30 + 282 + 8)
